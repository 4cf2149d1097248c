"The benchmark of both libraries runs and prints its table."

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SMALL = (
    "--no-compile --layers 1 --heads 2 --width 32 --vocab-size 64 --seq-len 16 --batch-size 2 "
    "--steps 2 --repeats 1 --prompt 4 --new-tokens 6 --texts 1 3"
)


@pytest.mark.slow
def test_in_jax():
    command = [sys.executable, ROOT / "benchmarks" / "in_jax.py", *SMALL.split()]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert "torch" in said and "jax" in said and "cores" in said
    assert "14,464 parameters" in said and "PyTorch is not compiled: as asked" in said
    assert said.count("tokens/s") == 6 and said.count("times PyTorch, eager") == 6
    assert "the same ids in both: 1 of 1" in said and "the same ids in both: 3 of 3" in said
    losses = [line.split()[-1] for line in said.splitlines() if "loss of step" in line]
    assert losses == ["4.05011"]
