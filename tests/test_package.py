"The packed wheel, alone in a clean environment, imports and runs its commands."
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_wheel_in_a_clean_environment(tmp_path):
    subprocess.run([sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT], check=True, capture_output=True, timeout=300)
    wheel, = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "llm_course/gpt.py" in names and not [name for name in names if name.startswith(("nbs", "tests", "data"))]
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt", wheel]
    subprocess.run(install, check=True, timeout=900)
    modules = [p.stem for p in (ROOT / "llm_course").glob("*.py") if p.stem not in ("__init__", "_modidx", "widgets")]
    code = f"""
import importlib, importlib.util, llm_course
for name in ("nbdev", "fastcore", "execnb", "IPython", "jupyterlab", "ipywidgets"): assert importlib.util.find_spec(name) is None, name
for name in {modules}: importlib.import_module("llm_course." + name)
from llm_course.gpt import GPT, GPTConfig
print(llm_course.__version__, GPT(GPTConfig()).config)
"""
    subprocess.run([python, "-c", code], check=True, cwd=tmp_path, timeout=120)
    tiny = ["corpus.source=tales:200", "tokenizer.vocab_size=400", "model.d_model=16", "model.n_layers=1", "train.max_steps=3", "train.warmup_steps=1", "eval.stories=2", "eval.show=1"]
    for command in (["llm_tokenize", *tiny], ["llm_train", *tiny], ["llm_eval"], ["llm_generate", "Mia", "sample.max_new_tokens=3"]):
        subprocess.run([python.parent / command[0], *command[1:]], check=True, cwd=tmp_path, timeout=120)
