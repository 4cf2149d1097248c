"""Build the site: `python docs/build.py [FOLDER]`, by default into `_docs/`. Nothing is fetched.

Sphinx wants its pages in one folder, so they are gathered in a temporary one that is laid out like
the repository: links keep working as they stand. The README becomes the first page, and each module
of the package gets a page made from its source.

Outputs are those that were committed, but for the widgets that can work in a page: `live.py` runs
the notebooks that show one."""

import ast
import asyncio
import json
import re
import shutil
import sys
import tempfile
import tokenize
from io import StringIO
from pathlib import Path

from contents import Course, cells, notebooks
from live import VIEW, run_all
from map import map_page
from sphinx.cmd.build import main as sphinx_build

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "llm_course"


def escape(text: str) -> str:
    "Text in which only `code` means something to Markdown."
    parts = re.split(r"(`[^`]*`)", text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([\\*_<>\[\]{}#|~^$@&])", r"\\\1", parts[i])
    return "".join(parts)


def comments(source: str) -> dict[int, str]:
    "The comment on each line of a module that has one."
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    found = (token for token in tokens if token.type == tokenize.COMMENT)
    return {token.start[0]: token.string.lstrip("# ") for token in found}


def signature(function: ast.FunctionDef, drop_self: bool = False) -> str:
    "`(x: Tensor, dim: int = -1) -> Tensor`, without `self`."
    arguments = ast.unparse(function.args)
    if drop_self:
        arguments = re.sub(r"^\w+(, )?(/, )?", "", arguments)
    returned = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"({arguments}){returned}"


def fields(function: ast.FunctionDef, notes: dict[int, str]) -> list[str]:
    """What the comment beside each parameter, and beside what is returned, says. A comment belongs
    to one parameter alone on its line; one behind several speaks of them all and stands in the
    source."""
    a = function.args
    arguments = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
    known = [(arg.arg, arg.end_lineno) for arg in arguments if arg is not None]
    lines = [line for _, line in known]
    found = []
    for name, line in known:
        if line in notes and lines.count(line) == 1:
            found.append(f":param {name}: {escape(notes[line])}")
    end = function.returns.end_lineno if function.returns else None
    if end in notes and end not in lines:
        found.append(f":returns: {escape(notes[end])}")
    return found


def directive(kind: str, head: str, body: list[str], depth: int = 0) -> str:
    "A Sphinx directive of the Python domain around a body, to be put inside `depth` others."
    fence = "`" * (7 - depth)
    inside = ["", *body] if body else []
    return "\n".join([f"{fence}{{py:{kind}}} {head}", *inside, fence, ""])


def described(node: ast.AST, notes: dict[int, str]) -> list[str]:
    "A docstring's lines, and then the fields."
    lines = [*escape(ast.get_docstring(node) or "").splitlines(), ""]
    if isinstance(node, ast.FunctionDef):
        lines += fields(node, notes)
    return lines


def method(node: ast.FunctionDef, notes: dict[int, str]) -> str | None:
    "A method or property of a class, or nothing for one that is private or not explained."
    explained = ast.get_docstring(node) or fields(node, notes)
    if node.name.startswith("_") or not explained:
        return None
    marks = {ast.unparse(mark) for mark in node.decorator_list}
    if marks & {"property", "cached_property"}:
        kind = "property"
        head = node.name
        if node.returns:
            head += f"\n:type: {ast.unparse(node.returns)}"
    else:
        special = marks & {"classmethod", "staticmethod"}
        kind = special.pop() if special else "method"
        head = node.name + signature(node, drop_self=kind != "staticmethod")
    return directive(kind, head, described(node, notes), 1)


def attribute(node: ast.AnnAssign, notes: dict[int, str]) -> str | None:
    "A field of a class, or nothing for a private one."
    if not isinstance(node.target, ast.Name) or node.target.id.startswith("_"):
        return None
    head = f"{node.target.id}\n:type: {ast.unparse(node.annotation)}"
    if node.value:
        head += f"\n:value: {ast.unparse(node.value)}"
    return directive("attribute", head, [escape(notes.get(node.end_lineno, ""))], 1)


def members(node: ast.ClassDef, notes: dict[int, str]) -> list[str]:
    "The methods, properties and fields of a class."
    found = []
    for child in node.body:
        if isinstance(child, ast.FunctionDef):
            found.append(method(child, notes))
        if isinstance(child, ast.AnnAssign):
            found.append(attribute(child, notes))
    return [text for text in found if text]


def class_entry(node: ast.ClassDef, notes: dict[int, str]) -> str:
    "An exported class with its members."
    inits = [child for child in node.body if getattr(child, "name", "") == "__init__"]
    head = node.name
    body = described(node, notes)
    for init in inits:
        head += signature(init, drop_self=True)
        body += fields(init, notes)
    return directive("class", head, [*body, "", *members(node, notes)])


def entry(name: str, node: ast.AST, notes: dict[int, str]) -> str:
    "An exported function, class or constant."
    if isinstance(node, ast.FunctionDef):
        return directive("function", node.name + signature(node), described(node, notes))
    if isinstance(node, ast.ClassDef):
        return class_entry(node, notes)
    head = name
    value = ast.unparse(node.value)
    if isinstance(node, ast.AnnAssign):
        head += f"\n:type: {ast.unparse(node.annotation)}"
    if len(value) < 100:
        head += f"\n:value: {value}"
    return directive("data", head, [escape(notes.get(node.end_lineno, ""))])


def top_level(tree: ast.Module) -> dict[str, ast.AST]:
    "What stands at a module's top level, by name."
    named = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            named[node.name] = node
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Name):
                named[target.id] = node
    return named


def api_page(module: str, notebook: Path) -> str:
    "A module's page: what it is for, the lesson that builds it, and each exported name."
    source = (PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    notes = comments(source)
    named = top_level(tree)
    lesson = notebook.relative_to(ROOT).as_posix()
    head = [f"# {module}", "", f"```{{py:module}} llm_course.{module}", "```", ""]
    head += [escape(ast.get_docstring(tree) or ""), ""]
    head += [f"Built and tested in [{notebook.stem}](/{lesson}).", ""]
    exported = ast.literal_eval(named["__all__"].value)
    return "\n".join(head + [entry(name, named[name], notes) for name in exported])


def tells_a_reader(cell: dict) -> bool:
    "Whether a cell is more than a word to nbdev, or to an empty machine."
    source = "".join(cell["source"])
    is_word = cell["cell_type"] == "raw" or re.fullmatch(r"#\| *default_exp.*\s*", source)
    return cell["id"] != "colab-cell" and not is_word


def names_in(source: str) -> str:
    "What a cell of the package defines: `RMSNorm, MLP`."
    names = []
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Name):
                names.append(target.id)
    return ", ".join(names)


def kind_and_prompt(cell: dict) -> tuple[str, str]:
    "What a folded cell is, and the words that stand for it."
    source = "".join(cell["source"])
    if "solution" in cell["metadata"].get("tags", ()):
        return "solution", "Solution"
    if re.match(r"#\| *exporti?\b", source):
        names = names_in(source)
        return ("package", f"Package: {names}") if names else ("setup", "Imports of the package")
    if re.search(r"\bassert\b|\bassert_\w+\(|\braises\(", source):
        return "tests", "Tests"
    return "setup", "Imports" if "import" in source else "Set-up"


def mark(cell: dict) -> None:
    "Tell the page what is folded, and what belongs to an exercise."
    look = cell["metadata"]
    tags = look.setdefault("tags", [])
    source = "".join(cell["source"])
    exercise = re.match(r"#\| *exercise *\n", source)
    if exercise:
        cell["source"] = source[exercise.end() :]
        tags.append("check" if "assert " in source else "exercise")
    if look.get("jupyter", {}).get("source_hidden"):
        kind, prompt = kind_and_prompt(cell)
        look["tags"] = sorted({*tags, "hide-input", kind})
        look["mystnb"] = {"code_prompt_show": prompt, "code_prompt_hide": prompt}


def as_page(path: Path, widgets: dict[str, str]) -> None:
    "Take out the cells that tell a reader nothing, mark the folded ones, and put in the widgets."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"] = [cell for cell in notebook["cells"] if tells_a_reader(cell)]
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            mark(cell)
        for output in cell.get("outputs", ()):
            if cell["id"] in widgets and VIEW in output.get("data", {}):
                output["data"] = {"text/html": widgets[cell["id"]]}
    path.write_text(json.dumps(notebook), encoding="utf-8")


def module_of(path: Path) -> str | None:
    "The module that a notebook exports."
    found = re.search(r"^#\| *default_exp +([\w.]+)", "\n".join(cells(path)), re.M)
    return found.group(1) if found else None


def linked_files() -> list[Path]:
    "The files besides notebooks that the README shows or leads to."
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"""\]\(([^)#\s]+)|<img[^>]+src="([^"]+)""", readme)
    paths = {ROOT / (link or image) for link, image in links}
    return [path for path in paths if path.is_file() and path.suffix != ".ipynb"]


def gather(folder: Path) -> None:
    "Lay out the site's pages in a folder."
    found = notebooks()
    widgets = asyncio.run(run_all(found))
    for path in {*found, *linked_files(), ROOT / "CONTRIBUTING.md"}:
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
        if path in found:
            as_page(copy, widgets)
    sources = {module_of(path): path for path in found}
    sources.pop(None, None)
    course = Course()
    pages = {f"api/{module}": api_page(module, path) for module, path in sources.items()}
    pages |= course.workshop_pages() | {"map": map_page(sources, escape)}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages["index"] = readme + course.trees(list(sources))
    for name, text in pages.items():
        path = folder / f"{name}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def main(target: Path) -> int:
    "Sphinx's exit code: not 0 when it had to warn."
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        built = Path(folder) / "built" / "html"     # myst-nb writes beside what it builds, too
        source.mkdir()
        gather(source)
        options = ["-q", "-W", "--keep-going", "-c", str(ROOT / "docs"), "-d", f"{folder}/doctrees"]
        code = sphinx_build([*options, str(source), str(built)])
        shutil.rmtree(target, ignore_errors=True)
        if built.is_dir():
            shutil.move(built, target)
        return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_docs"))
