"The benchmarks run and print their tables; what the tables say is for a quiet machine."

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(name, arguments, **more):
    "What a benchmark prints."
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more
    command = [sys.executable, ROOT / "benchmarks" / name, *arguments.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


SMALL_SHAPE = "--no-compile --layers 1 --heads 2 --width 32 --repeats 1 --buffer-mb 8"


def test_tokenizer(tmp_path):
    passage = "Passage {0} is about the number {1}, and about nothing else. "
    passages = [passage.format(i, i * i) * 4 for i in range(300)]
    corpus = tmp_path / "small.txt"
    corpus.write_text("\n\n".join(passages))
    said = run("tokenizer.py", f"--corpus {corpus} --vocab-size 320 --repeats 1 --memory-mb 0")
    assert "medians of 1 runs" in said
    assert said.count("as fast") >= 9
    assert "tiktoken" in said


def test_training():
    said = run("training.py", "--no-compile --repeats 1 --steps 2")
    assert "PyTorch" in said and "809,856 parameters" in said
    assert "medians of 1 runs" in said and "measured peak" in said
    assert said.count("tokens/s") == 2 and "times plain layers eager" in said
    assert "not compiled: as asked" in said


def test_generation():
    said = run(
        "generation.py",
        f"{SMALL_SHAPE} --vocab-size 64 --prompt 4 --new-tokens 6 --texts 1 3",
    )
    assert "18,528 parameters" in said and "1 threads" in said and "transformers" in said
    assert said.count("times transformers") == 6    # 3 sides, for 1 text and for 3
    assert said.count("of the limit") == 2 and "GB/s read" in said
    assert "1 text, prompt 4, 6 new tokens, greedy" in said and "3 texts" in said


def test_drawing():
    said = run("generation.py", f"{SMALL_SHAPE} --new-tokens 6 --texts 2 --sample")
    assert "drawn at temperature 1" in said
    assert said.count("times transformers") == 3


@pytest.mark.slow
def test_threads():
    said = run("threads.py", "--rounds 1 --seconds 0.1 --busy 1 --settings one spin1000")
    assert "train beside 1 busy processes" in said and "generate beside 1" in said
    assert said.count("tokens/s") == 4


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="bytes are counted by Linux")
@pytest.mark.parametrize("optimizer, n_ranks", [("muon", 2), ("adamw train.muon_lr=null", 4)])
def test_distributed(optimizer, n_ranks):
    settings = f"model.n_layers=2 train.seq_len=64 train.optimizer={optimizer}"
    said = run("distributed.py", f"{settings} --rounds 1 --steps 2 --ranks {n_ranks}")
    assert "PyTorch" in said and "4 x 64 tokens a step" in said
    assert said.count("times one process") == 3
    shares = [float(share) for share in re.findall(r"([\d.]+)% of the formula", said)]
    assert len(shares) == 2 and all(95 < share < 105 for share in shares), said


SMALL_SERVICE = "--models bundled --streams 2 --prompt 8 --new-tokens 6 --prefix 40 --pairs 1 --repeats 1"


def test_serving_without_http():
    said = run("serving.py", f"{SMALL_SERVICE} --no-http --no-compile")
    assert "1,049,984 parameters" in said and "2 texts at once" in said
    assert said.count("tokens/s") == 3 and "times generate_batch" in said
    assert "p99" in said and " of it" in said


@pytest.mark.slow
def test_serving():
    said = run("serving.py", SMALL_SERVICE)
    assert "llm_serve " in said and "transformers " in said and "times one stream" in said
    assert said.count("tokens/s") >= 6 and said.count("p99") == 3 and said.count(" of it") == 2


def test_imports():
    said = run("imports.py", "--rounds 2")
    assert "the package alone" in said and "medians of 2 starts" in said
