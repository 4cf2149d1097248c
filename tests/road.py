"""The budget of the road, lessons 00 to 10: `python tests/road.py` prints it. What a lesson may hold,
what it asks of a reader's time, and its exercises with their solutions."""

import re
from pathlib import Path

import nbformat

NBS = Path(__file__).parent.parent / "nbs"
ROAD = sorted(path for path in NBS.glob("*.ipynb") if re.match(r"(0\d|10)_", path.name))

# What one lesson may hold at most; the picture counts cells from 0.
LESSON_LIMITS = {"cells": 60, "concepts": 12, "first picture": 9, "refusals": 3}
# And all lessons together.
ROAD_LIMITS = {"words": 12_000, "lines": 2_500}
WORDS_A_MINUTE = 200
LINES_A_MINUTE = 20
FIRST_EXERCISE = 5  # minutes

# Seconds for Run All in a fresh kernel: two CPU cores and nothing else at work, 2026-11-26.
RUN_SECONDS = {
    "00_start": 6,
    "01_tokenizer": 8,
    "02_learning": 6,
    "03_attention": 13,
    "04_block": 13,
    "05_gpt": 9,
    "06_dataloader": 11,
    "07_training": 52,
    "08_sampling": 16,
    "09_evaluation": 11,
    "10_look_inside": 5,
}


def cells_of(path):
    return nbformat.read(path, 4).cells


def is_hidden(cell):
    return bool(cell.metadata.get("jupyter", {}).get("source_hidden"))


def is_solution(cell):
    return "solution" in cell.metadata.get("tags", [])


def is_exercise(cell):
    return cell.cell_type == "code" and bool(re.match(r"#\| *exercise\b", cell.source))


def code_lines(source):
    return sum(bool(line.strip()) for line in source.splitlines())


def has_picture(cell):
    if cell.cell_type == "markdown":
        return bool(re.search(r"!\[|<img|<svg", cell.source))
    kinds = {kind for output in cell.get("outputs", ()) for kind in output.get("data", {})}
    return bool(kinds & {"image/png", "image/svg+xml"})


def budget(path):
    "What a lesson holds, and the minutes that it asks for."
    cells = cells_of(path)
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    code = [cell for cell in cells if cell.cell_type == "code"]
    words = sum(len(source.split()) for source in prose)
    lines = sum(
        code_lines(cell.source) for cell in code if not is_hidden(cell) and not is_solution(cell)
    )
    concepts = {term.lower() for text in prose for term in re.findall(r"\*\*(.+?)\*\*", text)}
    pictures = [i for i, cell in enumerate(cells) if has_picture(cell)]
    seconds = RUN_SECONDS[path.stem]
    minutes = words / WORDS_A_MINUTE + lines / LINES_A_MINUTE + seconds / 60 + FIRST_EXERCISE
    return {
        "cells": len(cells),
        "words": words,
        "lines": lines,
        "concepts": len(concepts),
        "first picture": pictures[0] if pictures else len(cells),
        "refusals": sum(len(re.findall(r"pytest\.raises", cell.source)) for cell in code),
        "exercises": sum(is_solution(cell) for cell in code),
        "run seconds": seconds,
        "minutes": round(minutes),
    }


def table():
    "The budget of each lesson, and of all."
    rows = {path.stem: budget(path) for path in ROAD}
    total = {name: sum(row[name] for row in rows.values()) for name in next(iter(rows.values()))}
    total |= {name: max(row[name] for row in rows.values()) for name in LESSON_LIMITS}
    return rows | {"the road": total}


def exercises(cells):
    """The exercises of a lesson, each as the numbers of three cells that follow one another: the
    stub, the asserts and the solution."""
    found = []
    for i, cell in enumerate(cells):
        if is_exercise(cell) and not (i and is_exercise(cells[i - 1])):
            found.append((i, i + 1, i + 2))
    return found


FAILS = """\
try:
    for _source in {sources!r}:
        exec(_source, globals())
except Exception as _error:
    print("the stub:", type(_error).__name__)
else:
    raise RuntimeError("the asserts of an exercise pass with its stub")
"""


def with_solutions(cells):
    """The cells with each exercise put to the test: its stub must fail its asserts, and its solution
    must pass them."""
    cells = list(cells)
    for stub, asserts, solution in exercises(cells):
        sources = [cells[stub].source, cells[asserts].source]
        checked = re.sub(r"^#\| *exercise\n", "", cells[asserts].source)
        solved = cells[solution].source
        cells[stub] = nbformat.v4.new_code_cell(FAILS.format(sources=sources))
        cells[asserts] = nbformat.v4.new_code_cell(solved)
        cells[solution] = nbformat.v4.new_code_cell(checked)
    return cells


def main():
    rows = table()
    names = list(next(iter(rows.values())))
    print(f"{'lesson':16}" + "".join(f"{name:>14}" for name in names))
    for lesson, row in rows.items():
        print(f"{lesson:16}" + "".join(f"{row[name]:14,}" for name in names))


if __name__ == "__main__":
    main()
