"""The road, lessons 00 to 10, can be walked in about three hours: its budget, its exercises, and
the README's minutes."""

import re

import pytest
from road import (
    LESSON_LIMITS,
    ROAD,
    ROAD_LIMITS,
    budget,
    cells_of,
    exercises,
    is_exercise,
    is_solution,
    main,
    table,
)

each_lesson = pytest.mark.parametrize("path", ROAD, ids=lambda path: path.stem)
README = ROAD[0].parent.parent / "README.md"


def test_the_budget_of_the_road():
    main()
    total = table()["the road"]
    for name, limit in ROAD_LIMITS.items():
        assert total[name] <= limit, f"the road has {total[name]:,} {name}; {limit:,} are allowed"


@each_lesson
def test_the_budget_of_a_lesson(path):
    found = budget(path)
    for name, limit in LESSON_LIMITS.items():
        assert found[name] <= limit, f"{name}: {found[name]}, and {limit} is allowed"
    assert found["exercises"] >= 2


@each_lesson
def test_exercises_have_stub_asserts_and_solution(path):
    """In this order, one below the other. tests/test_browser.py runs them: with its solution an exercise
    passes, with its stub it fails."""
    cells = cells_of(path)
    found = exercises(cells)
    placed = {number for three in found for number in three}
    for stub, asserts, solution in found:
        assert is_exercise(cells[stub]) and is_exercise(cells[asserts])
        assert "assert " in cells[asserts].source
        assert is_solution(cells[solution])
    for number, cell in enumerate(cells):
        if is_exercise(cell) or is_solution(cell):
            assert number in placed, cell.source


def test_the_minutes_of_the_readme():
    "Each lesson's, and their sum, as the budget has them."
    rows = table()
    total = rows.pop("the road")["minutes"]
    text = README.read_text(encoding="utf-8")
    told = re.findall(r"^\| \[[^]]+\]\(nbs/(\w+)\.ipynb\) \| (\d+) min \|", text, re.M)
    wanted = {lesson: row["minutes"] for lesson, row in rows.items()}
    assert {lesson: int(minutes) for lesson, minutes in told} == wanted
    assert f"{total // 60} h {total % 60:02} min" in text


def test_the_readme():
    "No line is wider than a screen, and its figures are those of the bundled model."
    text = README.read_text(encoding="utf-8")
    for line in text.splitlines():
        assert len(line) <= 120, line
    verdict = (README.parent / "llm_course/bundled/eval.txt").read_text(encoding="utf-8")
    valid, stories = re.search(r"temperature 0.8: ([\d.]+)% of (\d+) stories", verdict).groups()
    assert f"| {round(float(valid) * int(stories) / 100)} of {stories} |" in text
    assert re.search(r"gap +([\d.]+ ± [\d.]+) nats a token", verdict)[1] in text
