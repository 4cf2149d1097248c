"""Build the site: `python docs/build.py [FOLDER]`, by default into `_docs/`. Nothing is fetched.

Sphinx wants its pages in one folder, so they are gathered in a temporary one that is laid out like the repository: links keep
working as they stand. The README becomes the first page, and each module of the package gets a page made from its source.

Outputs are those that were committed, but for the widgets that can work in a page: `live.py` runs the notebooks that show one."""
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

from live import VIEW, run_all
from sphinx.cmd.build import main as sphinx_build

ROOT = Path(__file__).resolve().parent.parent


def escape(text: str) -> str:
    "Text in which only `code` means something to Markdown."
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if i % 2 else re.sub(r"([\\*_<>\[\]{}#|~^$@&])", r"\\\1", part) for i, part in enumerate(parts))


def comments(source: str) -> dict[int, str]:
    "The comment on each line of a module that has one."
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def signature(function: ast.FunctionDef, drop_self: bool = False) -> str:
    "`(x: Tensor, dim: int = -1) -> Tensor`, without `self`."
    arguments = ast.unparse(function.args)
    if drop_self: arguments = re.sub(r"^\w+(, )?(/, )?", "", arguments)
    return f"({arguments})" + (f" -> {ast.unparse(function.returns)}" if function.returns else "")


def fields(function: ast.FunctionDef, notes: dict[int, str]) -> list[str]:
    "What the comment beside each parameter, and beside what is returned, says."
    a = function.args
    known = [(arg.arg, arg.end_lineno) for arg in (*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg]))]
    lines = [line for _, line in known]
    # A comment belongs to one parameter alone on its line; one behind several speaks of them all and stands in the source.
    found = [f":param {name}: {escape(notes[line])}" for name, line in known if line in notes and lines.count(line) == 1]
    end = function.returns.end_lineno if function.returns else None
    return found + ([f":returns: {escape(notes[end])}"] if end in notes and end not in lines else [])


def directive(kind: str, head: str, body: list[str], depth: int = 0) -> str:
    "A Sphinx directive of the Python domain around a body, to be put inside `depth` others."
    fence = "`" * (7 - depth)
    return "\n".join([f"{fence}{{py:{kind}}} {head}", *(["", *body] if body else []), fence, ""])


def described(node, notes: dict[int, str]) -> list[str]:
    "A docstring's lines, and then the fields."
    text = escape(ast.get_docstring(node) or "")
    return [*text.splitlines(), ""] + (fields(node, notes) if isinstance(node, ast.FunctionDef) else [])


def member(node: ast.AST, notes: dict[int, str]) -> str | None:
    "One method, property or field of a class, or nothing for what is private or not explained."
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and (ast.get_docstring(node) or fields(node, notes)):
        marks = {ast.unparse(mark) for mark in node.decorator_list}
        if marks & {"property", "cached_property"}:
            kind, head = "property", node.name + (f"\n:type: {ast.unparse(node.returns)}" if node.returns else "")
        else:
            kind = next((name for name in ("classmethod", "staticmethod") if name in marks), "method")
            head = node.name + signature(node, drop_self=kind != "staticmethod")
        return directive(kind, head, described(node, notes), 1)
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_"):
        head = f"{node.target.id}\n:type: {ast.unparse(node.annotation)}" + (f"\n:value: {ast.unparse(node.value)}" if node.value else "")
        return directive("attribute", head, [escape(notes.get(node.end_lineno, ""))], 1)


def entry(name: str, node: ast.AST, notes: dict[int, str]) -> str:
    "An exported function, class or constant."
    if isinstance(node, ast.FunctionDef): return directive("function", node.name + signature(node), described(node, notes))
    if isinstance(node, ast.ClassDef):
        init = next((child for child in node.body if isinstance(child, ast.FunctionDef) and child.name == "__init__"), None)
        body = described(node, notes) + (fields(init, notes) if init else []) + [""]
        return directive("class", node.name + (signature(init, drop_self=True) if init else ""), body + list(filter(None, (member(child, notes) for child in node.body))))
    value, kind = ast.unparse(node.value), f"\n:type: {ast.unparse(node.annotation)}" if isinstance(node, ast.AnnAssign) else ""
    return directive("data", name + kind + (f"\n:value: {value}" if len(value) < 100 else ""), [escape(notes.get(node.end_lineno, ""))])


def api_page(module: Path, notebook: Path) -> str:
    "A module's page: what it is for, the lesson that builds it, and each exported name."
    source = module.read_text(encoding="utf-8")
    tree, notes = ast.parse(source), comments(source)
    named = {}                                                                          # what stands at the module's top level
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): named[node.name] = node
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Name): named[target.id] = node
    exported = ast.literal_eval(named["__all__"].value)
    head = [f"# {module.stem}", "", f"```{{py:module}} llm_course.{module.stem}", "```", "", escape(ast.get_docstring(tree)), "",
            f"Built and tested in [{notebook.stem}](/{notebook.relative_to(ROOT).as_posix()}).", ""]
    return "\n".join(head + [entry(name, named[name], notes) for name in exported])


def title(path: Path) -> str:
    "A lesson's number and heading."
    heading = next(line for cell in cells(path) for line in cell.splitlines() if line.startswith("# "))[2:]
    return f"{path.stem[:2]} {heading}" if path.stem[:2].isdigit() else heading


def cells(path: Path) -> list[str]:
    "The sources of a notebook's cells."
    return ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]


def as_page(path: Path, widgets: dict[str, str]) -> None:
    "Take out the cells that tell only nbdev or an empty machine something, and put in the widgets."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"] = [cell for cell in notebook["cells"] if not re.fullmatch(r"#\| *default_exp.*\s*", "".join(cell["source"])) and cell["id"] != "colab-cell"]
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if cell["id"] in widgets and VIEW in output.get("data", {}): output["data"] = {"text/html": widgets[cell["id"]]}
    path.write_text(json.dumps(notebook), encoding="utf-8")


def toctree(caption: str, pages: list[str]) -> str:
    "A part of the table of contents, which the theme shows beside each page."
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def gather(folder: Path) -> None:
    "Lay out the site's pages in a folder."
    notebooks = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    widgets = asyncio.run(run_all(notebooks, ROOT / "llm_course" / "widgets.py"))
    for path in [*notebooks, ROOT / "CONTRIBUTING.md", ROOT / "data/pretrained/loss.png", ROOT / "data/pretrained/eval.txt"]:
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
        if path in notebooks: as_page(copy, widgets)
    found = {path: re.search(r"^#\| *default_exp +(\w+)", "\n".join(cells(path)), re.M) for path in notebooks}
    sources = {match.group(1): path for path, match in found.items() if match}          # each module's notebook
    (folder / "api").mkdir()
    for module, path in sources.items():
        (folder / "api" / f"{module}.md").write_text(api_page(ROOT / "llm_course" / f"{module}.py", path), encoding="utf-8")
    page = lambda path: f"{title(path)} </{path.relative_to(ROOT).with_suffix('').as_posix()}>"
    support = [path for path in notebooks if path.parent.name == "support"]
    trees = [toctree("Lessons", [page(path) for path in notebooks if path not in support]), toctree("What the lessons use", list(map(page, support))),
             toctree("The package", [f"api/{module}" for module in sources]), toctree("More", ["CONTRIBUTING"])]
    (folder / "index.md").write_text((ROOT / "README.md").read_text(encoding="utf-8") + "".join(trees), encoding="utf-8")


def main(target: Path) -> int:
    "Sphinx's exit code: not 0 when it had to warn."
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder) / "source", Path(folder) / "built" / "html"       # myst-nb writes beside what it builds, too
        source.mkdir()
        gather(source)
        code = sphinx_build(["-q", "-W", "--keep-going", "-c", str(ROOT / "docs"), "-d", f"{folder}/doctrees", str(source), str(built)])
        shutil.rmtree(target, ignore_errors=True)
        if built.is_dir(): shutil.move(built, target)
        return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_docs"))
