"""The order of the site's pages: the table of contents, and what stands before and behind a page.

The road is lessons 00 to 10. A workshop belongs to the lesson of its number, and has its place in
the table of contents below that lesson's name; the lessons from 11 on are further journeys."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = re.compile(r"(\d\d)([a-z]?)_")
MINUTES = re.compile(r"^\| \[[^\]]+\]\(nbs/(\w+)\.ipynb\) \| (\d+) min \|", re.M)
LAST = 10  # the road's last lesson


def notebooks() -> list[Path]:
    "All notebooks of the course, in order."
    found = sorted((ROOT / "nbs").rglob("*.ipynb"))
    return [path for path in found if ".ipynb_checkpoints" not in path.parts]


def number(path: Path) -> int | None:
    "The number of a lesson or a workshop; None for what the lessons use."
    found = NAME.match(path.name)
    return int(found[1]) if found else None


def is_workshop(path: Path) -> bool:
    found = NAME.match(path.name)
    return bool(found and found[2])


def cells(path: Path) -> list[str]:
    "The sources of a notebook's cells."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"]]


def title(path: Path) -> str:
    "A lesson's number and heading."
    lines = (line for cell in cells(path) for line in cell.splitlines())
    heading = next(line for line in lines if line.startswith("# "))[2:]
    found = re.match(r"\d\d[a-z]?", path.stem)
    return f"{found[0]} {heading}" if found else heading


def tagline(path: Path) -> str:
    "What stands below a notebook's heading."
    lines = (line for cell in cells(path) for line in cell.splitlines())
    return next(line for line in lines if line.startswith("> "))[2:]


def minutes() -> dict[str, int]:
    "How long a lesson of the road takes, by its file's stem: what the README's table says."
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return {stem: int(count) for stem, count in MINUTES.findall(readme)}


def name_of(path: Path) -> str:
    "A notebook's page."
    return path.relative_to(ROOT).with_suffix("").as_posix()


class Course:
    "The notebooks by what they are."

    def __init__(self):
        found = notebooks()
        numbered = [path for path in found if number(path) is not None]
        lessons = [path for path in numbered if not is_workshop(path)]
        self.road = [path for path in lessons if number(path) <= LAST]
        self.journeys = [path for path in lessons if number(path) > LAST]
        self.support = [path for path in found if number(path) is None]
        self.workshops = {}  # of a lesson: its workshops
        for lesson in lessons:
            same = [path for path in numbered if number(path) == number(lesson)]
            self.workshops[lesson] = [path for path in same if is_workshop(path)]

    def neighbors(self) -> dict[str, tuple[str | None, str | None]]:
        """The pages before and behind each lesson and workshop: along the road, and after it through
        the further journeys; a workshop leads back to its lesson, on to the next workshop, and from
        the last to the next lesson."""
        lessons = self.road + self.journeys
        names = ["index", *map(name_of, lessons), None]
        found = {}
        for i, lesson in enumerate(lessons, 1):
            found[names[i]] = (names[i - 1], names[i + 1])
            shops = list(map(name_of, self.workshops[lesson]))
            for shop, following in zip(shops, [*shops[1:], names[i + 1]]):
                found[shop] = (names[i], following)
            if shops:
                found[f"workshops/{lesson.stem}"] = (names[i], shops[0])
        found["index"] = (None, names[1])
        return found

    def labels(self) -> dict[str, str]:
        "The number and heading of each lesson and workshop, by its page."
        lessons = self.road + self.journeys
        paths = lessons + [shop for lesson in lessons for shop in self.workshops[lesson]]
        return {name_of(path): title(path) for path in paths}

    def workshop_pages(self) -> dict[str, str]:
        "For each lesson of the road that has workshops a page that lists them, by its name."
        found = {}
        for lesson in self.road:
            shops = self.workshops[lesson]
            if not shops:
                continue
            lines = [f"# Workshops of {title(lesson)}", ""]
            lines += [f"They go further than lesson [{title(lesson)}](/{name_of(lesson)}.ipynb).", ""]
            lines += [f"- [{title(shop)}](/{name_of(shop)}.ipynb): {tagline(shop)}" for shop in shops]
            lines += [toctree("", map(entry, shops))]
            found[f"workshops/{lesson.stem}"] = "\n".join(lines)
        return found

    def trees(self, modules: list[str]) -> str:
        "The table of contents."
        takes = minutes()
        road = [entry(path, takes.get(path.stem)) for path in self.road]
        shops = [
            f"{title(path)} </workshops/{path.stem}>" for path in self.road if self.workshops[path]
        ]
        journeys = []
        for path in self.journeys:
            journeys += map(entry, [path, *self.workshops[path]])
        parts = {
            "The road": road,
            "Workshops by lesson": shops,
            "Further journeys": journeys,
            "What the lessons use": list(map(entry, self.support)),
            "The package": [f"api/{module}" for module in modules],
            "More": ["map", "CHANGELOG", "CONTRIBUTING"],
        }
        return "".join(toctree(caption, pages) for caption, pages in parts.items())


def entry(path: Path, takes: int | None = None) -> str:
    "A notebook in a table of contents, with the minutes that it takes."
    label = title(path) if takes is None else f"{title(path)} · {takes} min"
    return f"{label} </{name_of(path)}>"


def toctree(caption: str, pages) -> str:
    "A part of the table of contents, which the theme shows beside each page."
    head = ["", "```{toctree}", ":hidden:"]
    if caption:
        head.append(f":caption: {caption}")
    return "\n".join([*head, "", *pages, "```", ""])
