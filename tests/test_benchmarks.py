"The benchmarks run and print their tables; what the tables say is for a quiet machine."
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(name, *arguments):
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / name, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_tokenizer(tmp_path):
    (tmp_path / "small.txt").write_text("\n\n".join(f"Passage {i} is about the number {i * i}, and about nothing else. " * 4 for i in range(300)))
    said = run("tokenizer.py", "--corpus", str(tmp_path / "small.txt"), "--vocab-size", "320", "--repeats", "1", "--memory-mb", "0")
    assert "medians of 1 runs" in said and said.count("as fast") >= 9 and "tiktoken (Rust), one thread" in said


def test_training():
    said = run("training.py", "--no-compile", "--repeats", "1", "--steps", "2")
    assert "PyTorch" in said and "809,856 parameters" in said and "medians of 1 runs" in said and "measured peak" in said
    assert said.count("tokens/s") == 2 and "llm_course eager:" in said and "times plain layers eager" in said and "not compiled: as asked" in said


def test_generation():
    said = run("generation.py", "--no-compile", "--layers", "1", "--heads", "2", "--width", "32", "--vocab-size", "64", "--prompt", "4", "--new-tokens", "6",
               "--texts", "1", "3", "--repeats", "1", "--buffer-mb", "8")
    assert "18,528 parameters" in said and "1 threads" in said and "not compiled: as asked" in said and "transformers" in said
    assert said.count("times transformers") == 6 and said.count("of the limit") == 2 and "GB/s read" in said      # 3 sides, for 1 text and for 3
    assert "1 text, prompt 4, 6 new tokens, greedy" in said and "3 texts" in said and "torch._int_mm" in said
    drawn = run("generation.py", "--no-compile", "--layers", "1", "--heads", "2", "--width", "32", "--new-tokens", "6", "--texts", "2", "--repeats", "1", "--buffer-mb", "8", "--sample")
    assert "drawn at temperature 1" in drawn and drawn.count("times transformers") == 3
