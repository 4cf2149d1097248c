"The notebooks are the source: exported, clean, in order, and every cell runs in nbdev_test and in a real kernel; they open elsewhere, too."
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from configparser import ConfigParser
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
LESSONS = [path for path in NOTEBOOKS if re.match(r"\d\d_", path.name)]


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


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_a_figure_stands_above_each_widget(path):
    "What a reader without a kernel sees, in GitHub's view, in an export and on the site."
    cells = nbformat.read(path, 4).cells
    shows = lambda cell, kind: any(kind in output.get("data", {}) for output in cell.get("outputs", ()))
    for i, cell in enumerate(cells):
        if shows(cell, "application/vnd.jupyter.widget-view+json"): assert any(shows(above, "image/png") for above in cells[max(0, i - 6):i])


def test_the_readme_tells_the_length_of_the_lessons():
    cells = [cell for path in LESSONS for cell in nbformat.read(path, 4).cells]
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    lines = sum(bool(line.strip()) for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines())
    told = re.search(r"about ([\d,]+) words.*?([\d,]+) lines of code", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    for number, found in zip(told.groups(), (words, lines)): assert abs(int(number.replace(",", "")) / found - 1) < 0.05, (number, found)


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


@pytest.fixture(scope="module")
def settings():
    "What settings.ini says."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_a_lesson_opens_in_colab_and_on_binder(path, settings):
    title, links, fetch = nbformat.read(path, 4).cells[:3]
    remedy = f"copy the two cells below the title from {LESSONS[0].name}, with this lesson's name in the links, and keep their ids"
    assert title.cell_type == "markdown" and title.source.startswith("# ")
    repo, branch, at = f"{settings['user']}/{settings['repo']}", settings["branch"], path.relative_to(ROOT)
    wanted = [f"https://colab.research.google.com/github/{repo}/blob/{branch}/{at}", f"https://mybinder.org/v2/gh/{repo}/{branch}?labpath={at}"]
    assert links.id == "colab-link" and re.findall(r"\[[^\]]+\]\(([^)]+)\)", links.source) == wanted, remedy
    first = nbformat.read(LESSONS[0], 4).cells[2]
    assert (fetch.id, fetch.cell_type, fetch.source, fetch.outputs) == ("colab-cell", "code", first.source, []), remedy
    assert f"https://github.com/{repo} " in fetch.source


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, settings):
    "A Python without the package, a folder for it to work in, and a copy of this repository in place of the public one."
    folder = tmp_path_factory.mktemp("elsewhere")
    copy, bare, work = folder / "public", folder / "venv", folder / "content"
    for name in ("llm_course", "nbs", "configs", "data/pretrained", ".binder"): shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "setup.py", "README.md", "constraints.txt"): shutil.copy(ROOT / name, copy)
    git = ["git", "-C", copy, "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "all"]): subprocess.run([*git, *command], check=True, timeout=60)
    # All that is installed here, pip too, but not the package itself, is seen through links.
    (folder / "packages").mkdir()
    for path in Path(pytest.__file__).parent.parent.iterdir():
        if "llm_course" not in path.name: (folder / "packages" / path.name).symlink_to(path)
    venv.create(bare)
    next(bare.glob("lib/python*/site-packages")).joinpath("packages.pth").write_text(f"{folder / 'packages'}\n")
    work.mkdir()
    # What is there already must do: nothing may be fetched from a package index, be it to replace torch. (pip reads NO_BUILD_ISOLATION=0 as no isolation.)
    env = {name: value for name, value in ENV.items() if name != "PYTHONPATH"} | {
        "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{copy.as_uri()}.insteadOf", "GIT_CONFIG_VALUE_0": f"https://github.com/{settings['user']}/{settings['repo']}"}
    def run(where, *arguments):
        done = subprocess.run([bare / "bin" / "python", *arguments], cwd=where, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-6000:]
        return done.stdout, done.stderr
    return run, work, copy


def test_the_course_is_fetched_where_it_is_missing(elsewhere, tmp_path):
    "Not into a checkout; but in a fresh folder. Then again, as after a restart, and in the lessons' own folder: nothing is left to do."
    run, work, _ = elsewhere
    cell, course = nbformat.read(LESSONS[0], 4).cells[2].source, work / "llm-course"
    (tmp_path / "nbs").mkdir()
    (tmp_path / "settings.ini").touch()
    assert run(tmp_path / "nbs", "-c", cell) == ("", "") and not list((tmp_path / "nbs").iterdir())
    code = cell + """
import torch
from llm_course.checkpoint import load_model
from llm_course.corpus import project_root
root = project_root()
model, tokenizer = load_model(root / "data" / "pretrained")
print(root, os.getcwd(), (root / "configs" / "base.yaml").is_file(), tokenizer.decode(tokenizer.encode("Mia")), torch.__file__)"""
    wanted = f"{course} {course / 'nbs'} True Mia {work.parent / 'packages' / 'torch' / '__init__.py'}\n"
    out, said = run(work, "-c", code)
    assert out == wanted, said
    installed = (work.parent / "venv" / "bin" / "llm_train").stat().st_mtime_ns
    for where in (work, course / "nbs"): assert run(where, "-c", code) == (wanted, "")
    assert (work.parent / "venv" / "bin" / "llm_train").stat().st_mtime_ns == installed and not (course / "nbs" / "llm-course").exists()


def test_binder_finds_its_requirements(elsewhere):
    "What repo2docker runs in the folder of the repository."
    run, _, copy = elsewhere
    run(copy, "-m", "pip", "install", "--dry-run", "--quiet", "-r", ".binder/requirements.txt")
