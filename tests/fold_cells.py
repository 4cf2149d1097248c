"""Fold what a reader of the notebooks may skip: `python tests/fold_cells.py [NOTEBOOK ...]`, by
default all of `nbs/`. What the rule does not fold is unfolded.

Everywhere: set-up (the Colab cell, `default_exp`, imports, seeds) and the solutions of exercises.
Off the road, also the package's cells and the tests. Never: text, exercises, and what shows a figure
or a widget. Of a folded cell JupyterLab shows the first line: a solution's gives nothing away."""

import ast
import json
import re
import sys
from pathlib import Path

import nbformat
from road import NBS, ROAD, cells_of, code_lines, is_exercise, is_hidden, is_solution

SEEDS = re.compile(r"(torch|random|np\.random|os)\.(manual_seed|seed|set_num_threads|environ)\b")
CHECKS = re.compile(r"(torch\.testing\.)?assert_\w+\(|pytest\.raises\(|raises\(")
FIRST_LINE = "# A solution: click to open it."
SEEN = ("image/", "text/html", "application/vnd.jupyter.widget")


def shows(cell):
    "Whether a cell shows a figure or a widget."
    kinds = [kind for output in cell.get("outputs", ()) for kind in output.get("data", {})]
    return any(kind.startswith(SEEN) for kind in kinds)


def statements(cell):
    "The statements at the top of a cell; None where it is no plain Python, but a shell command."
    try:
        return ast.parse(cell.source).body
    except SyntaxError:
        return None


def prepares(node):
    "Whether a statement imports something, or sets a seed or the number of threads."
    return isinstance(node, (ast.Import, ast.ImportFrom)) or bool(SEEDS.match(ast.unparse(node)))


def is_setup(cell):
    "Whether a cell does nothing that a lesson is about."
    if cell.id in ("colab-cell", "jax-kernel"):
        return True
    found = statements(cell)
    return found is not None and all(map(prepares, found))


def is_block(node):
    return isinstance(node, (ast.With, ast.For, ast.If))


def is_check(node):
    "Whether a statement is a check: an assert, or what must raise."
    if isinstance(node, ast.With):
        return bool(CHECKS.match(ast.unparse(node.items[0])))
    return isinstance(node, ast.Assert) or bool(CHECKS.match(ast.unparse(node)))


def count_checks(nodes):
    "How many of these statements are checks, and how many are not; a block counts by its inside."
    checks = 0
    others = 0
    for node in nodes:
        if is_block(node) and not is_check(node):
            inside = count_checks([*node.body, *getattr(node, "orelse", ())])
            checks += inside[0]
            others += inside[1]
        elif is_check(node):
            checks += 1
        else:
            others += 1
    return checks, others


def ends_in_check(node):
    while is_block(node) and not is_check(node):
        node = node.body[-1]
    return is_check(node)


def is_package(cell):
    return bool(re.match(r"#\| *exporti?\b", cell.source))


def is_tests(cell):
    "Whether a cell holds more checks than other statements, or ends in one and says nothing."
    found = statements(cell)
    if not found:
        return False
    checks, others = count_checks(found)
    return checks > others or (ends_in_check(found[-1]) and not cell.outputs)


def should_be_folded(cell, on_road):
    "What the rule says of a cell; None where its writer may choose."
    if cell.cell_type != "code" or not cell.source.strip() or is_exercise(cell):
        return False
    if is_solution(cell):
        return True
    if shows(cell):
        return False
    if is_setup(cell):
        # A reader of the road may have to see where two names come from.
        is_brief = on_road and cell.id != "colab-cell" and code_lines(cell.source) <= 2
        is_for_nbdev = cell.source.startswith("#|")
        return None if is_brief and not is_for_nbdev else True
    return not on_road and (is_package(cell) or is_tests(cell))


def wrongly_folded(path):
    "The cells of a notebook that are folded, or are not, against the rule."
    on_road = path in ROAD
    found = []
    for cell in cells_of(path):
        wanted = should_be_folded(cell, on_road)
        tells = is_solution(cell) and not cell.source.startswith(FIRST_LINE)
        if tells or (wanted is not None and wanted != is_hidden(cell)):
            found.append(cell)
    return found


def fold(path):
    "Fold and unfold the cells of a notebook; whether that changed it."
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    on_road = path.resolve() in ROAD
    for raw, cell in zip(notebook["cells"], nbformat.reads(text, 4).cells):
        wanted = should_be_folded(cell, on_road)
        if is_solution(cell) and not cell.source.startswith(FIRST_LINE):
            raw["source"] = [f"{FIRST_LINE}\n", *raw["source"]]
        if wanted is None:
            continue
        looks = raw["metadata"].setdefault("jupyter", {})
        looks.pop("source_hidden", None)
        if wanted:
            looks["source_hidden"] = True
        if not looks:
            del raw["metadata"]["jupyter"]
    folded = json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    path.write_text(folded, encoding="utf-8")
    return folded != text


def main(names):
    paths = [Path(name) for name in names]
    for path in paths or sorted(NBS.rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts and fold(path):
            print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
