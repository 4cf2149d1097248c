"""What proves the lessons on JAX beside their notebooks: all of tests/jax_cases, in one process of the
Python that has JAX (`make jax`)."""

import os
import subprocess
from pathlib import Path

import pytest
from shared import jax_python

ROOT = Path(__file__).parent.parent
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("mark", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_in_jax(mark):
    pytest_options = ["-q", "-p", "no:cacheprovider", "-m", mark]
    command = [jax_python(), "-m", "pytest", *pytest_options, "tests/jax_cases"]
    run = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, (run.stdout + run.stderr)[-12000:]
    assert "skipped" not in run.stdout, run.stdout
