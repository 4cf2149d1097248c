"""The notebooks are the source: exported, clean, in order, and every cell runs: the road's in a real
kernel, all others in nbdev_test and, where a widget is shown, in a kernel, too; they open elsewhere."""

import ast
import copy
import importlib.util
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
from fold_cells import wrongly_folded
from nbclient import NotebookClient
from road import is_solution, with_solutions
from shared import CHROMIUM, jax_python

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "llm_course"
LESSON = re.compile(r"(\d\d)([a-z]?)_")                  # 03_attention: the road; 03b_cache: a workshop
# By hand: what the package shows at its door.
BY_HAND = {"__init__", "widgets.__init__", "_modidx"}
# What every exported module may import, and what none below the commands may.
FOR_ALL = {"files", "locks", "seals", "strangers", "workers", "hooks"}
FOR_NOTEBOOKS = {"fonts", "viz", "viz_text", "track", "widgets", "checks"}
FOR_NOTEBOOKS |= {"diagrams", "diagrams_ranks", "diagrams_serving"}
TORCH_FREE = ("corpus", "sources", "tokenizer", "bpe", "formats", "files", "workers", "commands")


def module_name(path):
    "`llm_course/widgets/base.py -> 'widgets.base'`."
    return path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")


def is_hidden(path):
    return ".ipynb_checkpoints" in path.parts


NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if not is_hidden(path))
LESSONS = [path for path in NOTEBOOKS if LESSON.match(path.name)]
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if module_name(path) not in BY_HAND)
# One thread a process, since the tests run in several; no network and no GPU, as on a laptop.
ENV = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "MPLBACKEND": "",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",  # JAX compiles sooner
}


def read_settings():
    "What settings.ini says."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


FLAGS = read_settings()["tst_flags"].split()  # cells that begin with one of them are not run


def name_of(path):
    return path.stem


def is_road(path):
    "Lessons 00 to 10 without a letter."
    found = LESSON.match(path.name)
    return bool(found) and not found[2] and int(found[1]) <= 10


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=name_of)


def directives(cell):
    "The `#|` lines that a code cell begins with."
    head = re.match(r"(?:\s*#\|.*\n?)*", cell.source).group(0)
    return re.findall(r"^#\|\s*([\w-]+)\s*:?\s*(.*)$", head, re.M)


def exported_module(path):
    "The module that a notebook's `default_exp` names, or None."
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "code":
            continue
        for name, value in directives(cell):
            if name == "default_exp":
                return value.strip()
    return None


def test_there_are_notebooks():
    assert sum(map(is_road, LESSONS)) == 11
    assert len(LESSONS) >= 30


def test_clean_and_export_leave_no_difference(tmp_path):
    for name in ("settings.ini", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    hidden = shutil.ignore_patterns(".ipynb_checkpoints")
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=hidden)
    for name in ("__init__.py", "widgets/__init__.py"):
        (tmp_path / "llm_course" / name).parent.mkdir(exist_ok=True)
        shutil.copy(PACKAGE / name, tmp_path / "llm_course" / name)
    scripts = Path(sys.executable).parent
    for command in ("nbdev_clean", "nbdev_export"):
        env = ENV | {"PYTHONPATH": str(tmp_path)}
        subprocess.run([scripts / command], cwd=tmp_path, check=True, env=env, timeout=300)

    def files(root, folder, pattern):
        found = [path for path in (root / folder).glob(pattern) if not is_hidden(path)]
        return {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in found}

    for folder, pattern in (("nbs", "**/*.ipynb"), ("llm_course", "**/*.py")):
        ours = files(ROOT, folder, pattern)
        fresh = files(tmp_path, folder, pattern)
        stray = "a module without a notebook, or a notebook that was not exported"
        assert sorted(ours) == sorted(fresh), stray
        differing = [name for name in ours if ours[name] != fresh[name]]
        assert differing == [], "run nbdev_clean and nbdev_export"


def test_a_notebook_exports_the_module_of_its_name():
    found = {path: exported_module(path) for path in NOTEBOOKS}
    modules = [module for module in found.values() if module]
    assert len(modules) == len(set(modules))
    assert sorted(map(module_name, MODULES)) == sorted(modules)
    for path, module in found.items():
        stem = LESSON.sub("", path.stem, count=1)
        folder = path.relative_to(ROOT / "nbs").parent.as_posix()
        wanted = f"widgets.{stem}" if folder == "support/widgets" else stem
        assert module in (None, wanted)


def imported_modules(path):
    "The modules of the package that one of its modules imports, wherever in its text."
    here = module_name(path).split(".")[:-1]
    found = set()

    def take(names):
        "A module's name, or a module's name and one in it."
        name = ".".join(names)
        known = {module_name(module) for module in MODULES} | {"widgets"}
        found.add(name if name in known else ".".join(names[:-1]))

    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("llm_course."):
                    take(alias.name.split(".")[1:])
        if not isinstance(node, ast.ImportFrom):
            continue
        assert not any(alias.name == "*" for alias in node.names)
        base = node.module.split(".") if node.module else []
        if node.level:
            base = here[: len(here) - (node.level - 1)] + base
        elif base[:1] == ["llm_course"]:
            base = base[1:]
        else:
            continue
        for alias in node.names:
            take([*base, alias.name])
    return found - {""}


@pytest.fixture(scope="module")
def graph():
    "Which module imports which."
    return {module_name(path): imported_modules(path) for path in MODULES}


@pytest.fixture(scope="module")
def numbers():
    "The number of the lesson that exports a module."
    found = {exported_module(path): LESSON.match(path.name) for path in LESSONS}
    return {module: int(match[1]) for module, match in found.items() if module}


def test_imports_point_to_lower_numbers(graph, numbers):
    for module, imported in graph.items():
        if module not in numbers:
            continue
        for other in imported - FOR_ALL:
            if other.partition(".")[0] in FOR_NOTEBOOKS:
                assert numbers[module] >= 90, f"{module} imports {other}"
            else:
                assert numbers[other] <= numbers[module], f"{module} imports {other}"


def test_support_modules_stand_alone(graph):
    standard = set(sys.stdlib_module_names)
    for module in sorted(FOR_ALL):
        others = {"hooks": {"torch"}, "strangers": {"yaml"}}.get(module, set())
        assert graph[module] == ({"locks"} if module == "files" else set())
        tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module] if node.level == 0 else []
            assert {name.partition(".")[0] for name in names} <= standard | others


def test_no_circle_of_imports(graph):
    "Take away what imports nothing that is left, again and again: nothing may remain."
    left = {module: set(imported) & set(graph) for module, imported in graph.items()}
    while left:
        free = {module for module, imported in left.items() if not imported & set(left)}
        assert free, f"these import each other in a circle: {sorted(left)}"
        left = {module: imported for module, imported in left.items() if module not in free}


@pytest.mark.parametrize("module", TORCH_FREE)
def test_text_needs_no_torch(module):
    code = f"import sys, llm_course.{module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=ENV, timeout=60)


def test_only_the_modules_on_jax_import_it(graph):
    "And no other module imports them: the course needs no JAX."
    for path in MODULES:
        module = module_name(path)
        text = path.read_text(encoding="utf-8")
        imports_jax = re.search(r"^ *(from|import) (jax|flax|optax)\b", text, re.M)
        imported = {other for other in graph[module] if other.startswith("jax_")}
        assert module.startswith("jax_") or not (imports_jax or imported), module


@pytest.mark.parametrize("module", ["jax_gpt", "jax_layers", "jax_sampling", "jax_training"])
def test_a_python_without_jax_shows_the_remedy(module, monkeypatch):
    "Python shows the line that failed, and in it stands what to do."
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.delitem(sys.modules, f"llm_course.{module}", raising=False)
    with pytest.raises(ModuleNotFoundError) as refused:
        importlib.import_module(f"llm_course.{module}")
    assert "# missing? run make jax, or pip install 'llm_course[jax]'" in str(refused.traceback[-1])


def test_pretrained_imports_no_hugging_face_library():
    libraries = {"transformers", "huggingface_hub", "tokenizers"}
    code = f"import sys, llm_course.pretrained; sys.exit(bool({libraries} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, env=ENV, timeout=60)


@each_notebook
def test_committed_outputs(path):
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert "widgets" not in notebook["metadata"], "widget state in the metadata"
    assert len(text) < 400_000
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            shown = json.dumps(output)
            assert output["output_type"] != "error"
            machine = re.search(r"/(root|home|work|tmp|Users)/", shown)
            assert not machine, f"a path of one machine: {shown[:200]}"
            assert not re.search(r"\d+%\|", shown), f"a progress bar: {shown[:200]}"


@each_notebook
def test_what_may_be_skipped_is_folded(path):
    """On the road only set-up and solutions are, which begin with a line that gives nothing away;
    elsewhere the package's cells and the tests are, too."""
    wrong = [cell.source[:80] for cell in wrongly_folded(path)]
    assert wrong == [], "run python tests/fold_cells.py"


def shows(cell, kind):
    return any(kind in output.get("data", {}) for output in cell.get("outputs", ()))


@pytest.mark.parametrize("path", [path for path in LESSONS if is_road(path)], ids=name_of)
def test_a_road_lesson_has_a_figure(path):
    cells = nbformat.read(path, 4).cells
    assert any(shows(cell, "image/png") or shows(cell, "image/svg+xml") for cell in cells)


@each_lesson
def test_a_figure_stands_above_each_widget(path):
    "What a reader without a kernel sees, in GitHub's view, in an export and on the site."
    cells = nbformat.read(path, 4).cells
    for i, cell in enumerate(cells):
        if shows(cell, "application/vnd.jupyter.widget-view+json"):
            assert any(shows(above, "image/png") for above in cells[max(0, i - 6) : i])


def nbdev_test(folder, *arguments):
    "Exit code, and what the command says, in a folder with a settings.ini."
    command = [Path(sys.executable).parent / "nbdev_test", *arguments]
    options = {"cwd": folder, "env": ENV, "timeout": 300, "capture_output": True, "text": True}
    done = subprocess.run(command, **options)
    return done.returncode, done.stdout + done.stderr


def test_nbdev_test_runs_a_notebook():
    "The command that nbdev's users know. Our own tests run each heading: notebook_items.py."
    code, said = nbdev_test(ROOT, "--path", "nbs/02c_clipping.ipynb")
    assert code == 0 and "Success" in said, said


def make_notebook(path, *sources):
    "A notebook of headings and code."
    kinds = {True: nbformat.v4.new_markdown_cell, False: nbformat.v4.new_code_cell}
    cells = [kinds[source.startswith("## ")](source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def test_nbdev_test_sees_what_goes_wrong(tmp_path):
    shutil.copy(ROOT / "settings.ini", tmp_path)
    make_notebook(tmp_path / "one.ipynb", "1 / 0")
    code, said = nbdev_test(tmp_path, "--path", "one.ipynb")
    assert code == 1 and "ZeroDivisionError" in said, said


def test_each_heading_is_a_test(tmp_path):
    """Cells above run first, once; a failure names its heading and its cell, and what stands below is
    not run. An exit in the midst of a cell, a cell that does not end, one that asks: all fail."""
    make_notebook(
        tmp_path / "a.ipynb",
        *("## Set *up*", "n = 1\nopen('ran.txt', 'a').write('once ')", "## No code"),
        *("## Count", "n += 1\nassert n == 2"),
        *("## Count", "assert n == 2", "## Break", "print('before')\n1 / 0", "## Below", "n"),
    )
    make_notebook(tmp_path / "b.ipynb", "## Exit", "import os; os._exit(3)")
    make_notebook(tmp_path / "c.ipynb", "## Endless", "while True: pass")
    make_notebook(tmp_path / "d.ipynb", "## Ask", "input()")
    make_notebook(tmp_path / "e.ipynb", "## Slow", "#| slow\n1 / 0", "## Other", "1 / 0")
    few = "from notebook_items import Session; Session.context.set_forkserver_preload(['execnb.shell'])"
    (tmp_path / "conftest.py").write_text(few)  # these need no torch
    options = ["-q", "-rA", "-p", "notebook_items", "-p", "no:cacheprovider", "--cell-seconds=3"]
    env = ENV | {"PYTHONPATH": str(Path(__file__).parent)}

    def run(*arguments):
        command = [sys.executable, "-m", "pytest", *options, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=120)
        said = done.stdout.decode()
        return set(re.findall(r"^(PASSED|FAILED) (\S+)", said, re.M)), said

    found, said = run(".", "-n2")
    assert (tmp_path / "ran.txt").read_text() == "once "
    passed = {("PASSED", f"a.ipynb::{name}") for name in ("Set-up", "Count", "Count-2")}
    failed = {("FAILED", name) for name in ("a.ipynb::Break", "a.ipynb::Below", "b.ipynb::Exit")}
    failed |= {("FAILED", name) for name in ("c.ipynb::Endless", "d.ipynb::Ask", "e.ipynb::Other")}
    assert found == passed | failed, said
    for words in (
        "a.ipynb, under Break. Cell 9:",
        "ZeroDivisionError",
        "before",
        "a.ipynb, under Below. It was not run, since cell 9 failed.",
        "with 3.",
        "within 3.0 s.",
        "EOFError",
    ):
        assert words in said, words
    found, said = run("a.ipynb::Count-2", "e.ipynb", "--cells=slow", "-k", "Count or Slow")
    assert found == {("PASSED", "a.ipynb::Count-2"), ("FAILED", "e.ipynb::Slow")}, said


def is_skipped(cell):
    "Whether nbdev_test leaves a cell out."
    marks = directives(cell)
    return any(name in FLAGS or (name, value.strip()) == ("eval", "false") for name, value in marks)


def shows_a_widget(path):
    cells = nbformat.read(path, 4).cells
    return any(shows(cell, "application/vnd.jupyter.widget-view+json") for cell in cells)


# What tests/test_browser.py runs in JupyterLab; all else runs in a kernel here.
IN_BROWSER = [path for path in LESSONS if is_road(path)]


def hidden_errors(notebook):
    "Errors inside an Output widget, which no cell reports."
    state = notebook.metadata.get("widgets", {})
    state = state.get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    for model in state.values():
        if model["model_name"] == "OutputModel":
            for output in model["state"].get("outputs", ()):
                if output["output_type"] == "error":
                    yield output


def kernel_of(path):
    "The kernel that a notebook names: `python3`, or `jax`, which has more packages."
    return nbformat.read(path, 4).metadata.kernelspec.name


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if kernel_of(p) == "jax"], ids=name_of)
def test_a_kernel_without_jax_says_what_to_do(path, monkeypatch):
    cells = nbformat.read(path, 4).cells
    [check] = [cell for cell in cells if cell.id == "jax-kernel"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="no jax, flax, optax: run make jax, and choose the kernel"):
        exec(check.source, {})


def run_in_kernel(path, choose):
    """A notebook, of which `choose` gives the cells, run in a kernel as in Jupyter, without those that
    tests skip."""
    notebook = nbformat.read(path, 4)
    cells = choose(notebook.cells)
    notebook.cells = [c for c in cells if c.cell_type != "code" or not is_skipped(c)]
    notebook.metadata.pop("widgets", None)
    place = {"metadata": {"path": str(path.parent)}}
    kernel = kernel_of(path)
    if kernel == "jax":
        jax_python()  # or the test ends here
    NotebookClient(notebook, timeout=300, kernel_name=kernel, resources=place).execute()
    assert list(hidden_errors(notebook)) == []
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert code and all(cell.execution_count for cell in code)


@pytest.fixture
def kernel_environment(monkeypatch):
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)


# It trains for 20 s; docs/live.py runs it in a kernel, too, for test_site.py.
ON_THE_SITE = ("17_encoder_decoder",)


def in_kernel(path):
    """A kernel differs from nbdev_test where a widget is shown, and lesson 18 has one of its own; the
    other notebooks take minutes, and the modules of 18's workshops are held by tests/jax_cases."""
    needed = is_road(path) or shows_a_widget(path) or path.stem == "18_jax"
    needed = needed and path.stem not in ON_THE_SITE
    return pytest.param(path, id=name_of(path), marks=[] if needed else pytest.mark.slow)


@pytest.mark.parametrize("path", [in_kernel(path) for path in NOTEBOOKS])
def test_real_kernel(path, kernel_environment):
    if CHROMIUM is not None and path in IN_BROWSER:
        pytest.skip("tests/test_browser.py runs it in JupyterLab in Chromium")
    run_in_kernel(path, with_solutions if is_road(path) else list)


def each_twice(cells):
    "Each code cell two times in a row; solutions, which want the exercise above them, are left out."
    twice = []
    for cell in cells:
        if cell.cell_type == "code" and not is_solution(cell):
            again = copy.deepcopy(cell)
            again.id = f"{cell.id}-again"
            twice += [cell, again]
    return twice


@pytest.mark.slow
@each_notebook
def test_each_cell_runs_twice(path, kernel_environment):
    "A reader changes a cell and runs it again: nothing in it stops at what its first run has left."
    run_in_kernel(path, each_twice)


@pytest.fixture(scope="module")
def settings():
    return read_settings()


@each_lesson
def test_a_lesson_opens_in_colab_and_on_binder(path, settings):
    title, links, fetch = nbformat.read(path, 4).cells[:3]
    remedy = (
        f"copy the two cells below the title from {LESSONS[0].name}, "
        "with this lesson's name in the links, and keep their ids"
    )
    assert title.cell_type == "markdown" and title.source.startswith("# ")
    repo = f"{settings['user']}/{settings['repo']}"
    branch = settings["branch"]
    at = path.relative_to(ROOT)
    wanted = [
        f"https://colab.research.google.com/github/{repo}/blob/{branch}/{at}",
        f"https://mybinder.org/v2/gh/{repo}/{branch}?labpath={at}",
    ]
    assert links.id == "colab-link", remedy
    assert re.findall(r"\[[^\]]+\]\(([^)]+)\)", links.source) == wanted, remedy
    first = nbformat.read(LESSONS[0], 4).cells[2]
    assert (fetch.id, fetch.cell_type, fetch.outputs) == ("colab-cell", "code", []), remedy
    assert fetch.source == first.source, remedy
    assert f'"https://github.com/{repo}"' in fetch.source


class Elsewhere:
    "A Python without the package, a folder to work in, and a copy of this repository."

    def __init__(self, folder, settings):
        self.public = folder / "public"
        self.packages = folder / "packages"
        self.work = folder / "content"
        self.venv = folder / "venv"
        self.work.mkdir()
        self._publish()
        self._make_python()
        # What is installed here must do: nothing is fetched from an index, be it to replace torch.
        # (pip reads NO_BUILD_ISOLATION=0 as no isolation.)
        instead = f"url.{self.public.as_uri()}.insteadOf"
        self.env = {name: value for name, value in ENV.items() if name != "PYTHONPATH"} | {
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": instead,
            "GIT_CONFIG_VALUE_0": f"https://github.com/{settings['user']}/{settings['repo']}",
        }

    def _publish(self):
        "The repository as git would give it."
        unwanted = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        for name in ("llm_course", "nbs", "configs", ".binder"):
            shutil.copytree(ROOT / name, self.public / name, ignore=unwanted)
        for name in ("settings.ini", "setup.py", "MANIFEST.in", "README.md", "constraints.txt"):
            shutil.copy(ROOT / name, self.public)
        git = ["git", "-C", self.public, "-c", "user.name=test", "-c", "user.email=test@localhost"]
        for command in ("init --quiet", "add --all", "commit --quiet --message all"):
            subprocess.run([*git, *command.split()], check=True, timeout=60)

    def _make_python(self):
        "All that is installed here, pip too, but not the package itself, is seen through links."
        self.packages.mkdir()
        for path in Path(pytest.__file__).parent.parent.iterdir():
            if "llm_course" not in path.name:
                (self.packages / path.name).symlink_to(path)
        venv.create(self.venv)
        site = next(self.venv.glob("lib/python*/site-packages"))
        (site / "packages.pth").write_text(f"{self.packages}\n")

    def run(self, where, *arguments):
        "Standard output and standard error of that Python."
        command = [self.venv / "bin" / "python", *arguments]
        options = {"cwd": where, "env": self.env, "timeout": 300}
        done = subprocess.run(command, capture_output=True, text=True, **options)
        assert done.returncode == 0, done.stderr[-6000:]
        return done.stdout, done.stderr


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, settings):
    return Elsewhere(tmp_path_factory.mktemp("elsewhere"), settings)


SHOW = """
import torch
from llm_course import load_model
from llm_course.sources import project_root
root = project_root()
model, tokenizer = load_model()
has_configs = (root / "configs" / "base.yaml").is_file()
print(root, os.getcwd(), has_configs, tokenizer.decode(tokenizer.encode("Mia")), torch.__file__)"""


def test_the_course_is_fetched_where_it_is_missing(elsewhere, tmp_path):
    """Not into a checkout; but in a fresh folder. Then again, as after a restart, and in the
    lessons' own folder: nothing is left to do."""
    cell = nbformat.read(LESSONS[0], 4).cells[2].source
    course = elsewhere.work / "llm-course"
    (tmp_path / "nbs").mkdir()
    (tmp_path / "settings.ini").touch()
    assert elsewhere.run(tmp_path / "nbs", "-c", cell) == ("", "")
    assert not list((tmp_path / "nbs").iterdir())
    torch = elsewhere.packages / "torch" / "__init__.py"
    wanted = f"{course} {course / 'nbs'} True Mia {torch}\n"
    out, said = elsewhere.run(elsewhere.work, "-c", cell + SHOW)
    assert out == wanted, said
    script = elsewhere.venv / "bin" / "llm_train"
    installed = script.stat().st_mtime_ns
    for where in (elsewhere.work, course / "nbs"):
        assert elsewhere.run(where, "-c", cell + SHOW) == (wanted, "")
    assert script.stat().st_mtime_ns == installed
    assert not (course / "nbs" / "llm-course").exists()


def test_binder_finds_its_requirements(elsewhere):
    "What repo2docker runs in the folder of the repository."
    requirements = "-m pip install --dry-run --quiet -r .binder/requirements.txt"
    elsewhere.run(elsewhere.public, *requirements.split())
