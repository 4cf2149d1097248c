"""Widgets that work in a page, without a kernel.

Which they are is said in `llm_course/widgets`: a view with a `without_kernel` draws all that it
shows from its own state. A notebook that shows one is run in a kernel of its own, up to the last of
them, without the cells that tests skip. The state in which the kernel leaves the widget goes into
the page, its JavaScript and CSS with it; there `static/widgets.js` draws it."""

import ast
import asyncio
import html
import json
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

WIDGETS = Path(__file__).resolve().parent.parent / "llm_course" / "widgets"
VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
SKIPPED = re.compile(r"^#\| *(exercise|gpu|slow|notest|eval: *false)\b", re.M)


def is_live_view(node: ast.ClassDef) -> bool:
    "Whether a class says `without_kernel`."
    assigned = [part for part in node.body if isinstance(part, ast.Assign)]
    return any(ast.unparse(part.targets[0]) == "without_kernel" for part in assigned)


def live_widgets(folder: Path = WIDGETS) -> set[str]:
    """The explorers with a part that works without a kernel: those whose class names such a view, or
    a class above it that does."""
    found = set()
    for module in folder.glob("*.py"):
        tree = ast.parse(module.read_text(encoding="utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        views = {node.name for node in classes if is_live_view(node)}
        for node in classes:
            names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
            if views & names:
                views.add(node.name)
                found.add(node.name)
    return found


def shown(cell) -> tuple[str, str]:
    "The widget that a cell shows: the line for where no script runs, and its model's id."
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        if VIEW in data:
            return data["text/plain"], data[VIEW]["model_id"]
    return "", ""


def link_ends(model: dict) -> set[str]:
    "The ids of the two models that a link joins."
    state = model["state"]
    return {state[end][0].removeprefix("IPY_MODEL_") for end in ("source", "target")}


def models_of(
    root: str,               # the widget's model
    state: dict[str, dict],  # all models of a kernel, by id
) -> dict[str, dict]:
    "A widget's model, those that it is made of, and the links between them, by id."
    found = {}
    todo = [root]
    while todo:
        id = todo.pop()
        if id not in found:
            found[id] = state[id]
            todo += re.findall(r'"IPY_MODEL_(\w+)"', json.dumps(state[id]))
    links = {id: model for id, model in state.items() if model["model_name"] == "LinkModel"}
    inside = {id: model for id, model in links.items() if link_ends(model) <= found.keys()}
    return found | inside


def as_html(line: str, root: str, state: dict[str, dict]) -> str:
    "A widget and all that it needs, for a page."
    held = json.dumps({"root": root, "models": models_of(root, state)})
    held = held.replace("<", "\\u003c")  # no tag ends the element too early
    script = f'<script type="application/json">{held}</script>'
    return f'<div class="live-widget"><pre>{html.escape(line)}</pre>{script}</div>'


async def run(path: Path, live: set[str]) -> dict[str, str]:
    "The HTML of each widget of a notebook that works in a page, by its cell's id."
    notebook = nbformat.read(path, 4)
    wanted = [cell.id for cell in notebook.cells if shown(cell)[0].partition(":")[0] in live]
    if not wanted:
        return {}
    ids = [cell.id for cell in notebook.cells]
    needed = notebook.cells[: ids.index(wanted[-1]) + 1]
    notebook.cells = [cell for cell in needed if not SKIPPED.search(cell.source)]
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--log-level=ERROR"],
    )
    await client.async_execute()
    state = notebook.metadata.widgets[STATE]["state"]
    return {cell.id: as_html(*shown(cell), state) for cell in notebook.cells if cell.id in wanted}


async def run_all(paths: list[Path]) -> dict[str, str]:
    "The same for several notebooks at once."
    live = live_widgets()
    pages = await asyncio.gather(*(run(path, live) for path in paths))
    return {id: page for found in pages for id, page in found.items()}
