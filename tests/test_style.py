"""The code reads like code: figures of its lines, ruff, pyright, and a word for each parameter and
each exception of every public name."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import nbformat
import pytest
from code_figures import figures, modules

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "llm_course"
SCRIPTS = Path(sys.executable).parent
# A plain module needs no more than this; what it has less is free for the next one.
LIMITS = {
    "share over 100 columns": 0.05,
    "lines over 120 columns": 0,
    "decisions per 100 lines": 18,
    "tuple assignments per 1,000 lines": 12,
}


def test_figures_of_the_code():
    found = figures(PACKAGE)
    for name, value in found.items():
        print(f"{name:36} {value}")
    for name, limit in LIMITS.items():
        assert found[name] <= limit, f"{name}: {found[name]:.3f}, and {limit} is allowed"
    size, module = found["largest module"]
    assert size <= 280, f"{module} has {size} lines"
    assert found["base classes with one child"] == []


def test_ruff():
    places = ["nbs", "llm_course", "benchmarks", "docs", "tests"]
    command = [SCRIPTS / "ruff", "check", "--no-cache", "--config", "tests/ruff.toml", *places]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-6000:]


def test_pyright():
    command = [SCRIPTS / "basedpyright", "--project", "tests/pyrightconfig.json"]
    command += ["--level", "error", "--pythonpath", sys.executable]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-6000:]


def public_names(tree):
    "The names in a module's `__all__`."
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def comment_lines(text):
    "The numbers of the lines that end with a comment."
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0] for token in tokens if token.type == tokenize.COMMENT}


def parameters(function):
    "A function's parameters, without self and cls."
    a = function.args
    found = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
    return [arg for arg in found if arg is not None and arg.arg not in ("self", "cls")]


def raised(function):
    "The exceptions that a function's own body raises by name."
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) and node.exc is not None:
            name = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(name, ast.Name) and name.id[0].isupper():
                yield name.id


def missing_words(function, about, comments):
    "What neither a comment in the signature nor the docstring tells."
    words = set(re.findall(r"\w+", about))
    for arg in parameters(function):
        told = arg.lineno in comments or arg.end_lineno in comments
        if not told and arg.arg not in words:
            yield f"the parameter {arg.arg}"
    for name in raised(function):
        if name not in words:
            yield f"the exception {name}"


def is_public_method(node):
    "A method that a reader may call, and what makes an object."
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    return node.name == "__init__" or not node.name.startswith("_")


def untold(path):
    "What a reader of a module's public names is not told."
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    comments = comment_lines(text)
    names = public_names(tree)
    for node in tree.body:
        if getattr(node, "name", None) not in names:
            continue
        about = ast.get_docstring(node) or ""
        if not about:
            yield f"{node.name}: no docstring"
        if isinstance(node, ast.FunctionDef):
            for missing in missing_words(node, about, comments):
                yield f"{node.name}: {missing}"
        if not isinstance(node, ast.ClassDef):
            continue
        for method in filter(is_public_method, node.body):
            words = about + " " + (ast.get_docstring(method) or "")
            for missing in missing_words(method, words, comments):
                yield f"{node.name}.{method.name}: {missing}"


EXPORTED = [path for path in modules(PACKAGE) if path.name != "__init__.py"]


@pytest.mark.parametrize("path", EXPORTED, ids=lambda path: path.stem)
def test_public_names_are_explained(path):
    assert list(untold(path)) == []


def test_importing_the_package_imports_nothing_large():
    large = ("torch", "numpy", "matplotlib", "regex", "ipywidgets", "tiktoken")
    code = f"""
import sys
from importlib import import_module
import llm_course
assert not set({large}) & set(sys.modules), "the import of the package loads a large library"
for name in llm_course.__all__:
    getattr(llm_course, name)
assert set(llm_course.__all__) <= set(dir(llm_course))
try:
    llm_course.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


@pytest.mark.parametrize("lesson", ["08d_filters", "08g_penalties"])
def test_each_rule_for_the_next_token_has_its_asserts(lesson):
    cells = nbformat.read(ROOT / "nbs" / f"{lesson}.ipynb", 4).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    checks = "\n".join(source for source in sources if not source.startswith("#| export"))
    tree = ast.parse((PACKAGE / f"{lesson.partition('_')[2]}.py").read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    untested = {name for name in functions & public_names(tree) if name not in checks}
    assert not untested, f"write asserts for {untested} under its heading in nbs/{lesson}.ipynb"
