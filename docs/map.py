"""The map for the engineer: which lesson's modules use which, drawn from their imports; what to open for
which change; and every public name with its line."""

import ast
import html
import re
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path

from contents import ROOT, number, title

PACKAGE = ROOT / "llm_course"
ROW = 30  # pixels from one lesson to the next
LEFT = 140  # where the names begin; arcs stand left of it
RIGHT = 480  # where stands what a lesson gives to the others

# What a lesson's calls give: the way from texts to a text.
GIVES = {
    0: "documents",
    1: "ids",
    2: "loss, gradients, new weights",
    5: "logits",
    6: "batches",
    7: "checkpoints",
    8: "samples",
    9: "scores",
}

# A change, and the modules to open for it, the first one first.
CHANGES = {
    "another source of texts": ["sources", "text_files", "tables"],
    "another tokenizer, or its files": ["interface", "bpe", "formats", "foreign"],
    "another attention, norm or MLP": ["parts", "heads", "variants", "choices", "model_config"],
    "what a layer remembers": ["cache", "context"],
    "how rows are packed, shuffled, resumed": ["packing", "dataloader", "tokenfiles", "streaming"],
    "another optimizer or schedule": ["optim", "schedules", "settings"],
    "a step of training": ["throughput", "training", "measure"],
    "what a run keeps": ["checkpoint", "run_state", "run_folder", "seals"],
    "another rule for the next token": ["filters", "penalties", "engine", "decoding"],
    "faster writing": ["fast", "engine"],
    "how a model is judged": ["evaluation", "statistics", "documents"],
    "another family of other people's models": ["families", "hfconfig", "hfmaps", "hflayers"],
    "training on several processes": ["world", "processes", "sharded", "sharded_checkpoint"],
    "what the server answers": ["schema", "answer", "openai", "batching", "guard"],
    "who is served next": ["scheduler", "passes", "blocks"],
    "a setting or a command": ["sections", "config", "commands", "cli"],
    "a widget": ["widgets.base", "widgets.attention"],
}


def module_path(module: str) -> Path:
    return PACKAGE / f"{module.replace('.', '/')}.py"


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(module_path(module).read_text(encoding="utf-8"))


def imports(module: str, modules: set[str]) -> set[str]:
    "The modules of the package that one imports, wherever in its text."
    package = module.split(".")[:-1]
    found = set()
    for node in ast.walk(tree_of(module)):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = (node.module or "").split(".")
        if node.level:
            base = package[: len(package) - node.level + 1] + [part for part in base if part]
        elif base[0] == "llm_course":
            base = base[1:]
        else:
            continue
        names = [".".join([*base, alias.name]) for alias in node.names]
        found |= {name for name in [".".join(base), *names] if name in modules}
    return found


def reduced(edges: dict[int, set[int]]) -> dict[int, set[int]]:
    "Without what follows from the rest: where a uses b and b uses c, a's arc to c is left out."

    @cache
    def reach(a: int) -> frozenset[int]:
        return frozenset().union(edges[a], *(reach(b) for b in edges[a]))

    def direct(used: set[int]) -> set[int]:
        return {c for c in used if not any(c in reach(b) for b in used - {c})}

    return {a: direct(used) for a, used in edges.items()}


def lessons(sources: dict[str, Path]) -> dict[int, list[str]]:
    "The modules of each numbered lesson and its workshops."
    found = defaultdict(list)
    for module, path in sources.items():
        if number(path) is not None:
            found[number(path)].append(module)
    return dict(sorted(found.items()))


def edges_of(groups: dict[int, list[str]]) -> dict[int, set[int]]:
    "Of each lesson: the lessons whose modules its own import."
    home = {module: n for n, modules in groups.items() for module in modules}
    edges = {}
    for n, modules in groups.items():
        used = set().union(*(imports(module, set(home)) for module in modules))
        edges[n] = {home[module] for module in used} - {n}
    return edges


def figure(groups: dict[int, list[str]], names: dict[int, str]) -> str:
    "An arc from each lesson up to those that it builds on."
    rows = {n: ROW * (i + 1) for i, n in enumerate(groups)}
    arcs = []
    for n, used in reduced(edges_of(groups)).items():
        for other in sorted(used):
            width = 14 + 0.6 * (rows[n] - rows[other])
            told = f"{names[n]} builds on {names[other]}"
            below = rows[n] - 4
            above = rows[other]
            far = LEFT - width
            path = f"M{LEFT - 12} {below} C{far} {below} {far} {above} {LEFT - 12} {above}"
            arcs.append(f'<path d="{path}"><title>{html.escape(told)}</title></path>')
    labels = [
        f'<text x="{LEFT}" y="{y + 4}" font-weight="600">{html.escape(names[n])}</text>'
        f'<text x="{RIGHT}" y="{y + 4}">{GIVES.get(n, "")}</text>'
        for n, y in rows.items()
    ]
    height = ROW * (len(rows) + 1)
    return (
        f'<svg viewBox="0 0 760 {height}" role="img" aria-label="Which lesson builds on which" '
        'style="max-width: 100%; font-size: 14px">'
        '<g fill="none" stroke="currentColor" stroke-opacity="0.45" stroke-width="1.3">'
        f"{''.join(arcs)}</g>"
        f'<g fill="currentColor">{"".join(labels)}</g></svg>'
    )


def first_line(module: str, name: str) -> str:
    "The first sentence of what a public name says of itself."
    for node in tree_of(module).body:
        if getattr(node, "name", None) == name:
            text = " ".join((ast.get_docstring(node) or "").split())
            return re.split(r"(?<=[.:]) (?=[A-Z«])|:$", text, maxsplit=1)[0]
    return ""


def public_names() -> dict[str, str]:
    "Where each public name of the package stands."
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOME":
            return ast.literal_eval(node.value)
    raise ValueError("llm_course/__init__.py has no _HOME.")


def link(module: str) -> str:
    return f"[{module}](api/{module}.md)"


def table(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    "A table of two columns, and a blank line."
    lines = [f"| {left} | {right} |" for left, right in (head, ("---", "---"), *rows)]
    return [*lines, ""]


def links(modules: list[str]) -> str:
    return " · ".join(link(module) for module in modules)


def map_page(
    sources: dict[str, Path],  # the notebooks by the module that each exports
    escape: Callable[[str], str],  # a text, of which only `code` means something to Markdown
) -> str:
    "The page."
    groups = lessons(sources)
    names = {n: title(next((ROOT / "nbs").glob(f"{n:02d}_*.ipynb"))) for n in groups}
    public = sorted(public_names().items(), key=lambda pair: pair[0].lower())
    modules = [(names[n], links(groups[n])) for n in groups]
    changes = [(what, links(found)) for what, found in CHANGES.items()]
    lines = [(f"[`{name}`](api/{home}.md)", escape(first_line(home, name))) for name, home in public]
    parts = [
        "# The package on one page",
        "",
        "Texts become documents, ids, batches, logits, a loss, gradients, new weights, a checkpoint,",
        "samples: each step is one call, and what it gives is a plain thing. A module imports from",
        "lessons with lower numbers. An arc leads from a lesson up to what it builds on, where that",
        "does not follow from other arcs. The picture is drawn from the imports.",
        "",
        figure(groups, names),
        "",
        *table(("lesson", "its modules"), modules),
        "## What to open for which change",
        "",
        *table(("to change", "open"), changes),
        "## Public names",
        "",
        "All come from `llm_course` itself: `from llm_course import GPT`.",
        "",
        *table(("name", "what it is"), lines),
    ]
    return "\n".join(parts)
