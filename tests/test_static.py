"""What the widgets bring to a page: JavaScript that can be read, and colors that can be."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from llm_course.viz import PALETTE
from llm_course.viz_text import PROBABILITY_LEVELS, level_names
from llm_course.widgets.base import static_file

ROOT = Path(__file__).parent.parent
STATIC = ROOT / "llm_course" / "static"
SCRIPTS = sorted(STATIC.glob("*.js"))
PAGE_SCRIPTS = sorted((ROOT / "docs" / "static").glob("*.js"))
NODE = shutil.which("node")
# Grounds and inks of JupyterLab's two themes: of a page, and of a cell's output. Text is 87 % ink.
THEMES = {
    "light": ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
    "dark page": ((0.13, 0.13, 0.13), (1.0, 1.0, 1.0)),
    "dark output": ((0.07, 0.07, 0.07), (1.0, 1.0, 1.0)),
}


def check_syntax(path, kind):
    "What node says of a script, without running it."
    command = [NODE, f"--input-type={kind}", "--check", "-"]
    return subprocess.run(command, stdin=path.open(), capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(NODE is None, reason="there is no node here")
@pytest.mark.parametrize("path", SCRIPTS + PAGE_SCRIPTS, ids=lambda path: path.stem)
def test_node_can_read_it(path, tmp_path):
    kind = "module" if path in SCRIPTS else "commonjs"
    run = check_syntax(path, kind)
    assert run.returncode == 0, run.stderr
    broken = tmp_path / "broken.js"
    broken.write_text(path.read_text(encoding="utf-8") + "\n}")
    assert check_syntax(broken, kind).returncode != 0


def test_there_is_a_style_for_each_script():
    assert SCRIPTS and {path.stem for path in SCRIPTS} == {path.stem for path in STATIC.glob("*.css")}
    assert static_file("lens.js") in SCRIPTS


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_nothing_is_fetched(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|import[ (]|url\(", text)
    of_its_server = path.name == "chat.js"  # its page's policy holds it to that
    assert of_its_server or "fetch(" not in text
    assert all(len(line) <= 100 for line in text.splitlines())


def mixed(color, share, ground):
    "A color over a ground."
    return tuple(share * c + (1 - share) * g for c, g in zip(color, ground))


def contrast(a, b):
    "The contrast of two colors (WCAG 2.2): 4.5 is what text needs."

    def light(color):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear))

    low, high = sorted((light(a), light(b)))
    return (high + 0.05) / (low + 0.05)


def rgb(color):
    return tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))


def worst_contrast(tints):
    "Of text on (color, share) over the grounds of all themes."
    found = []
    for ground, ink in THEMES.values():
        for color, share in tints:
            below = mixed(rgb(color), share, ground)
            found.append(contrast(below, mixed(ink, 0.87, below)))
    return min(found)


def tints(name, letter):
    "The (color, share) of the classes such as c0, c1, … of a style, in order."
    found = re.findall(
        rf"\.{letter}(\d) \{{ background: (#\w{{6}})(\w\w);", static_file(name).read_text()
    )
    assert [int(number) for number, _, _ in found] == list(range(len(found)))
    return [(color, int(share, 16) / 255) for _, color, share in found]


def test_tokens_can_be_read_on_their_tints():
    found = tints("token_strip.css", "c")
    assert [color for color, _ in found] == PALETTE[:6]
    assert worst_contrast(found) > 4.5


@pytest.mark.parametrize("name", ["written_text.css", "chat.css"])
def test_tokens_can_be_read_in_the_color_of_their_probability(name):
    found = tints(name, "p")
    assert [color for color, _ in found] == [color for _, color, _ in PROBABILITY_LEVELS]
    for (_, share), (_, _, strength) in zip(found, PROBABILITY_LEVELS):
        assert abs(share - strength) < 1 / 255
    assert worst_contrast(found) > 4.5


def test_the_chat_page_has_the_levels_of_the_course():
    lows = [f"{low:g}" for low, _, _ in PROBABILITY_LEVELS]
    assert f"const LEVELS = [{', '.join(lows)}];" in static_file("chat.js").read_text()
    key = re.findall(r'<span class="p\d">(.*)</span>', static_file("chat.html").read_text())
    assert key == level_names()


def test_the_chat_page_sets_text_as_text():
    assert not re.search("HTML|document.write|eval", static_file("chat.js").read_text())
    page = static_file("chat.html").read_text()
    assert not re.search(r"<style|<script(?! type=\"module\" src=)|\s(style|on\w+)=", page)


def test_words_can_be_read_on_every_shade_of_the_lens():
    assert "${75 * p}%" in static_file("lens.js").read_text()
    assert f"color-mix(in srgb, {PALETTE[0]} var(--share)" in static_file("lens.css").read_text()
    assert worst_contrast([(PALETTE[0], 0.75 * p / 100) for p in range(101)]) > 4.5


def test_only_colors_of_the_palette():
    grey = {"#7F7F7F33", "#bbb"}
    for path in STATIC.iterdir():
        for color in re.findall(r"#[0-9A-Fa-f]{3,8}\b", path.read_text(encoding="utf-8")):
            assert color in grey or color[:7] in PALETTE, path.name
