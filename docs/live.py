"""Widgets that work in a page, without a kernel.

Which they are is said in `llm_course/widgets.py`: a view with a `without_kernel` draws all that it shows from its own state. A notebook that
shows one is run in a kernel of its own, up to the last of them, without the cells that tests skip. The state in which the kernel leaves the widget
goes into the page, where `static/widgets.js` draws it."""
import ast
import asyncio
import html
import json
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

VIEW, STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"
SKIPPED = re.compile(r"^#\| *(gpu|slow|notest|eval: *false)\b", re.M)


def live_widgets(module: Path) -> set[str]:
    "The explorers with a part that works without a kernel: those whose class uses one that has a `without_kernel`."
    classes = [node for node in ast.parse(module.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    views = {c.name for c in classes for node in c.body for target in getattr(node, "targets", []) if ast.unparse(target) == "without_kernel"}
    return {c.name for c in classes if views & {node.id for node in ast.walk(c) if isinstance(node, ast.Name)}}


def shown(cell) -> tuple[str, str]:
    "The widget that a cell shows: the line that stands for it where no script runs, and its model's id."
    data = [output["data"] for output in cell.get("outputs", ()) if VIEW in output.get("data", {})]
    return (data[0]["text/plain"], data[0][VIEW]["model_id"]) if data else ("", "")


def models_of(root: str, state: dict[str, dict]) -> dict[str, dict]:
    "A widget's model, those that it is made of, and the links between them, by id."
    found, todo = {}, [root]
    while todo:
        if (id := todo.pop()) in found: continue
        found[id] = state[id]
        todo += re.findall(r'"IPY_MODEL_(\w+)"', json.dumps(state[id]))
    ends = lambda model: {model["state"][end][0].removeprefix("IPY_MODEL_") for end in ("source", "target")}
    return found | {id: model for id, model in state.items() if model["model_name"] == "LinkModel" and ends(model) <= found.keys()}


def as_html(line: str, root: str, state: dict[str, dict]) -> str:
    "A widget and all that it needs, for a page."
    held = json.dumps({"root": root, "models": models_of(root, state)}).replace("<", "\\u003c")   # no tag ends the element too early
    return f'<div class="live-widget"><pre>{html.escape(line)}</pre><script type="application/json">{held}</script></div>'


async def run(path: Path, live: set[str]) -> dict[str, str]:
    "The HTML of each widget of a notebook that works in a page, by its cell's id."
    notebook = nbformat.read(path, 4)
    wanted = [cell.id for cell in notebook.cells if shown(cell)[0].partition(":")[0] in live]
    if not wanted: return {}
    end = next(i for i, cell in enumerate(notebook.cells, 1) if cell.id == wanted[-1])
    notebook.cells = [cell for cell in notebook.cells[:end] if not SKIPPED.search(cell.source)]
    options = {"kernel_name": "python3", "resources": {"metadata": {"path": str(path.parent)}}, "extra_arguments": ["--log-level=ERROR"]}
    await NotebookClient(notebook, timeout=300, **options).async_execute()
    return {cell.id: as_html(*shown(cell), notebook.metadata.widgets[STATE]["state"]) for cell in notebook.cells if cell.id in wanted}


async def run_all(paths: list[Path], module: Path) -> dict[str, str]:
    "The same for several notebooks at once."
    live = live_widgets(module)
    return {id: page for pages in await asyncio.gather(*(run(path, live) for path in paths)) for id, page in pages.items()}
