"The packed wheel, alone in a clean environment and an empty folder, imports and runs its commands."

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "llm_course"
NOTEBOOK_TOOLS = ("nbdev", "fastcore", "execnb", "IPython", "jupyterlab", "ipywidgets")
WITH_EXTRA = ("answer", "guard", "openai", "page", "schema", "serve")  # these want the extra `serve`
WITH_JAX = "jax_"  # modules that begin so want the extra `jax`
DATA = ("py.typed", "tales.json", "bundled/model.safetensors", "bundled/config.yaml")
TINY = [
    "corpus.source=tales:200",
    "tokenizer.vocab_size=400",
    "model.d_model=16",
    "model.n_layers=1",
    "train.max_steps=3",
    "train.warmup_steps=1",
    "eval.stories=2",
    "eval.show=1",
]
COMMANDS = (
    ["llm_generate", "Mia", "sample.max_new_tokens=3"],     # of the bundled model: there is no other
    ["llm_tokenize", *TINY],
    ["llm_train", *TINY],
    ["llm_eval"],
    ["llm_generate", "Mia", "sample.max_new_tokens=3"],
)


def test_wheel_in_a_clean_environment(tmp_path):
    build = [sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    wheel = next((tmp_path / "dist").glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    static = [path.relative_to(PACKAGE).as_posix() for path in (PACKAGE / "static").iterdir()]
    assert static
    for name in ("gpt.py", "widgets/base.py", *DATA, *static):
        assert f"llm_course/{name}" in names
    assert not [name for name in names if name.startswith(("nbs", "tests", "data"))]

    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = "-m pip install --quiet --disable-pip-version-check".split()
    constraints = ["-c", ROOT / "constraints.txt"]
    subprocess.run([python, *install, *constraints, wheel], check=True, timeout=900)

    empty = tmp_path / "empty"
    empty.mkdir()
    modules = [path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith(("_", WITH_JAX))]
    modules = sorted(set(modules) - set(WITH_EXTRA))
    code = f"""
import importlib, importlib.util, llm_course
for name in {NOTEBOOK_TOOLS}:
    assert importlib.util.find_spec(name) is None, name
for name in {modules}:
    importlib.import_module("llm_course." + name)
from llm_course import GPT, GPTConfig, Tales, generate_text, load_model
print(llm_course.__version__, GPT(GPTConfig()).config)
model, tokenizer = load_model()
story = "".join(generate_text(model, tokenizer, temperature=0))
assert len(story) > 100, story
assert Tales().is_valid(Tales().generate(1)[0])
"""
    subprocess.run([python, "-c", code], check=True, cwd=empty, timeout=120)
    for name, *arguments in COMMANDS:
        command = [python.parent / name, *arguments]
        subprocess.run(command, check=True, cwd=empty, timeout=120)
    run = subprocess.run([python.parent / "llm_serve"], cwd=empty, capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.endswith("pip install 'llm_course[serve]'.\n")
