"The notebooks are the source: exported, clean, in order, and every cell runs in nbdev_test and in a real kernel."
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import CHROMIUM
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MODULES = sorted(p for p in (ROOT / "llm_course").glob("*.py") if not p.name.startswith("_"))
SUPPORT = {"viz", "widgets", "track"}
# One thread a process, since the tests run in several; no network and no GPU, as on a reader's laptop.
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": ""}
name_of = lambda path: path.stem
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)


def directives(cell):
    "The `#|` lines that a code cell begins with."
    return re.findall(r"^#\|\s*([\w-]+)\s*:?\s*(.*)$", re.match(r"(?:\s*#\|.*\n?)*", cell.source).group(0), re.M)


def exported_module(path):
    "The module that a notebook's `default_exp` names, or None."
    for cell in nbformat.read(path, 4).cells:
        for name, value in directives(cell) if cell.cell_type == "code" else ():
            if name == "default_exp": return value.strip()


def test_there_are_notebooks():
    assert len([p for p in NOTEBOOKS if re.match(r"\d\d_", p.name)]) >= 12


def test_clean_and_export_leave_no_difference(tmp_path):
    for name in ("settings.ini", "setup.py"): shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (tmp_path / "llm_course").mkdir()
    shutil.copy(ROOT / "llm_course" / "__init__.py", tmp_path / "llm_course")
    bin_ = Path(sys.executable).parent
    for command in ("nbdev_clean", "nbdev_export"):
        subprocess.run([bin_ / command], cwd=tmp_path, check=True, env={**ENV, "PYTHONPATH": str(tmp_path)}, timeout=300)
    for folder, pattern in (("nbs", "**/*.ipynb"), ("llm_course", "*.py")):
        files = lambda root: {str(p.relative_to(root)): p.read_text(encoding="utf-8") for p in (root / folder).glob(pattern) if ".ipynb_checkpoints" not in p.parts}
        ours, fresh = files(ROOT), files(tmp_path)
        assert sorted(ours) == sorted(fresh), "a module without a notebook, or a notebook that was not exported"
        assert [name for name in ours if ours[name] != fresh[name]] == [], "run nbdev_clean and nbdev_export"


def test_no_two_notebooks_export_to_one_module():
    modules = [module for module in map(exported_module, NOTEBOOKS) if module]
    assert len(modules) == len(set(modules))
    assert {p.stem for p in MODULES} == set(modules)
    for path in NOTEBOOKS: assert exported_module(path) in (None, re.sub(r"^\d\d_", "", path.stem))


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_point_to_earlier_lessons(module):
    order = {exported_module(p): p.name for p in NOTEBOOKS if re.match(r"\d\d_", p.name)}
    imported = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not any(alias.name == "*" for alias in node.names)
            base = node.module or ""
            if node.level: imported |= {base} if base else {alias.name for alias in node.names}
            elif base == "llm_course": imported |= {alias.name for alias in node.names}
            elif base.startswith("llm_course."): imported.add(base.split(".")[1])
        elif isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("llm_course.")}
    if module.stem not in SUPPORT and module.stem != "cli": assert not imported & SUPPORT
    if module.stem in order: assert all(order[name] < order[module.stem] for name in imported - SUPPORT)


def test_tokenizer_and_corpus_import_no_torch():
    code = "import sys, llm_course.corpus, llm_course.tokenizer; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=ENV, timeout=60)


def test_pretrained_imports_no_hugging_face_library():
    code = "import sys, llm_course.pretrained; sys.exit(bool({'transformers', 'huggingface_hub', 'tokenizers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, env=ENV, timeout=60)


@each_notebook
def test_committed_outputs(path):
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert "widgets" not in notebook["metadata"], "widget state in the metadata"
    assert len(text) < 400_000
    figures = 0
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            shown = json.dumps(output)
            assert output["output_type"] != "error"
            assert not re.search(r"/(root|home|work|tmp|Users)/", shown), f"a path of one machine: {shown[:200]}"
            assert not re.search(r"\d+%\|", shown), f"a progress bar: {shown[:200]}"
            figures += "image/png" in output.get("data", {}) or "image/svg+xml" in output.get("data", {})
    if re.match(r"\d\d_", path.name): assert figures, "no figure in the committed outputs"


@each_notebook
def test_nbdev_test(path):
    command = [Path(sys.executable).parent / "nbdev_test", "--n_workers", "0", "--do_print", "--path", path]
    run = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=300)
    said = run.stdout + run.stderr
    assert run.returncode == 0, said[-6000:]
    assert "No files were eligible" not in said and "Success" in said, said[-2000:]


def is_skipped(cell):
    return any(name in ("gpu", "slow", "notest") or (name, value.strip()) == ("eval", "false") for name, value in directives(cell))


@pytest.mark.skipif(CHROMIUM is not None, reason="tests/test_browser.py runs every lesson in JupyterLab in Chromium")
@each_notebook
def test_real_kernel(path, monkeypatch):
    for name, value in ENV.items(): monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, 4)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type != "code" or not is_skipped(cell)]
    notebook.metadata.pop("widgets", None)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    state = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    hidden = [output for model in state.values() if model["model_name"] == "OutputModel"
              for output in model["state"].get("outputs", ()) if output["output_type"] == "error"]
    assert not hidden, hidden
    executed = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert executed and all(cell.execution_count for cell in executed)
