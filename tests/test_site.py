"""`docs/build.py` builds a site offline: complete, connected, and readable in a real browser on a
phone and on a desk, by day and by night."""

import ast
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product

import nbformat
import pytest
from playwright.sync_api import expect
from road import ROAD, is_hidden, is_solution
from shared import SCREENSHOTS
from test_notebooks import (
    ENV,
    LESSON,
    LESSONS,
    MODULES,
    NOTEBOOKS,
    ROOT,
    exported_module,
    module_name,
)

from llm_course.checkpoint import load_model
from llm_course.look_inside import attention_maps, logit_lens
from llm_course.viz_text import show_token
from llm_course.widgets import farthest_look, lens_table
from llm_course.writing import prompt_ids


def without_ending(path):
    return path.relative_to(ROOT).with_suffix("").as_posix()


PAGES = ["index", *map(without_ending, NOTEBOOKS), "map", "CHANGELOG", "CONTRIBUTING"]
PAGES += [f"api/{module_name(path)}" for path in MODULES]
MAIN = [path for path in LESSONS if not LESSON.match(path.name)[2]]  # the road and what follows it
JOURNEYS = [path for path in MAIN if path not in ROAD]
WORKSHOPS = {
    path: [other for other in LESSONS if other.name[:2] == path.name[:2] and other != path]
    for path in MAIN
}
PAGES += [f"workshops/{path.stem}" for path in ROAD if WORKSHOPS[path]]
SIZES = {"phone": (375, 812), "desk": (1300, 900)}
PICTURED = ("index", "map", "nbs/03_attention", "api/attention")
LIVE = {  # what works on a page, in part
    "AttentionExplorer",
    "CrossAttentionExplorer",
    "LogitLens",
    "TokenizerExplorer",
}
WIDGET = "application/vnd.jupyter.widget-view+json"
INSIDE = ROOT / "nbs" / "10_look_inside.ipynb"                   # the lesson of two live widgets


def build(folder, target):
    "Run a copy's docs/build.py."
    command = [sys.executable, folder / "docs" / "build.py", target]
    return subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The built site."
    folder = tmp_path_factory.mktemp("site")
    run = build(ROOT, folder)
    said = run.stdout + run.stderr
    assert (run.returncode, said) == (0, ""), said
    return folder


@pytest.fixture(scope="module")
def address(site):
    "Where the site is served from."

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def text_of(page):
    "What a page says, its white space as one blank."
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))))


def widget_lines(cell):
    "The line of words that stands for each widget that a cell shows."
    shown = [output["data"] for output in cell.get("outputs", ()) if "data" in output]
    return [data["text/plain"] for data in shown if WIDGET in data]


def neighbor(page, which):
    "The page before or behind a page."
    html = page.read_text(encoding="utf-8")
    found = re.search(rf'rel="{which}" title="[^"]*" href="([^"]+)"', html)
    return (page.parent / found.group(1)).resolve() if found else None


def test_the_road_leads_on_and_each_workshop_back(site):
    """From the first page along the road, and through the further journeys. A workshop leads back to
    its lesson, on to the next workshop, and from the last one to the next lesson."""
    root = site.resolve()

    def names(name):
        pages = (neighbor(root / f"{name}.html", which) for which in ("prev", "next"))
        return [page and page.relative_to(root).as_posix().removesuffix(".html") for page in pages]

    lessons = ["index", *map(without_ending, MAIN), None]
    assert names("index") == [None, lessons[1]]
    for before, path, behind in zip(lessons, MAIN, lessons[2:]):
        lesson = without_ending(path)
        assert names(lesson) == [before, behind]
        workshops = list(map(without_ending, WORKSHOPS[path]))
        for workshop, other in zip(workshops, [*workshops[1:], behind]):
            assert names(workshop) == [lesson, other]


def heading(path):
    "`03 Attention`, as in the table of contents."
    found = LESSON.match(path.name)
    title = nbformat.read(path, 4).cells[0].source.partition("\n")[0].removeprefix("# ")
    return f"{found[1]}{found[2]} {title}" if found else title


def test_the_table_of_contents(site):
    "Every page stands in it once, road and workshops apart, the road's lessons with their minutes."
    html = (site / "index.html").read_text(encoding="utf-8")
    tree = re.search(r'<div class="sidebar-tree">(.*?)</div>\s*</div>', html, re.S).group(1)
    _, *parts = re.split(r'<span class="caption-text">(.*?)</span>', tree)
    found = {
        caption: re.findall(r'<a class="reference internal" href="([^"#]+)\.html">(.*?)</a>', part)
        for caption, part in zip(parts[::2], parts[1::2])
    }
    told = re.findall(
        r"^\| \[[^]]+\]\((nbs/\w+)\.ipynb\) \| (\d+) min \|",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.M,
    )
    minutes = {name: f" · {count} min" for name, count in told}
    road = [(without_ending(path), heading(path)) for path in ROAD]
    workshops = []
    for path in ROAD:
        if WORKSHOPS[path]:
            workshops.append(f"workshops/{path.stem}")
            workshops += map(without_ending, WORKSHOPS[path])
    journeys = []
    for path in JOURNEYS:
        journeys += map(without_ending, [path, *WORKSHOPS[path]])

    def pages(caption):
        return [page for page, _ in found[caption]]

    assert found["The road"] == [(page, name + minutes.get(page, "")) for page, name in road]
    assert pages("Workshops by lesson") == workshops
    assert pages("Further journeys") == journeys
    assert list(found)[3:] == ["What the lessons use", "The package", "More"]
    everything = [page for caption in found for page in pages(caption)]
    assert sorted([*everything, "index"]) == sorted(PAGES)


def test_the_table_of_contents_says_where_a_page_stands(site):
    "Beside each page its own line is marked, the list around it is open, every link leads to a page."
    root = site.resolve()
    list_of = {}
    for path in ROAD:
        list_of |= dict.fromkeys(map(without_ending, WORKSHOPS[path]), f"workshops/{path.stem}")
    for name in PAGES:
        page = root / f"{name}.html"
        html = page.read_text(encoding="utf-8")
        tree = re.search(r'<div class="sidebar-tree">(.*?)<div class="main"', html, re.S).group(1)

        def target(link):
            found = page.parent / link if link != "#" else page  # noqa: B023
            return found.resolve().relative_to(root).as_posix().removesuffix(".html")

        links = re.findall(r'<a class="[^"]*reference internal" href="([^"]+)"', tree)
        assert sorted(["index", *map(target, links)]) == sorted(PAGES)
        marked = r'<li class="[^"]* current-page"><a class="current [^"]*" href="(.*?)"'
        here = re.findall(marked, tree)
        assert here == ([] if name == "index" else ["#"])
        opened = re.findall(r'href="([^"]+)">[^<]*</a><input [^>]*checked=', tree)
        shown = list_of.get(name, name if name.startswith("workshops/") else None)
        assert [target(link) for link in opened] == ([shown] if shown else [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_shows_its_source_and_its_figures(site, path):
    page = site / f"{without_ending(path)}.html"
    html = page.read_text(encoding="utf-8")
    text = text_of(page)
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    kinds = {"image/png", "image/svg+xml"}
    figures = sum(not kinds.isdisjoint(output.get("data", {})) for output in outputs)
    shown = re.findall(r'<img alt="figure" src="([^"]+)"', html)
    assert len(shown) == figures
    assert all((page.parent / name).is_file() for name in shown)
    here = [cell for cell in cells if is_hidden(cell) and cell.id != "colab-cell"]
    folded = [cell for cell in here if not re.fullmatch(r"#\| *default_exp .*\s*", cell.source)]
    assert html.count('<details class="admonition hide above-input">') == len(folded)
    live = 0
    for cell in cells:
        if cell.source.startswith("#| export"):
            assert re.sub(r"\s+", " ", cell.source).strip() in text
        for words in widget_lines(cell):
            assert words in text
            live += words.partition(":")[0] in LIVE
    assert html.count('<div class="live-widget">') == live


@pytest.mark.parametrize("module", MODULES, ids=module_name)
def test_a_module_has_every_exported_name(site, module):
    name = module_name(module)
    page = (site / "api" / f"{name}.html").read_text(encoding="utf-8")
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        is_assigned = isinstance(node, ast.Assign)
        if is_assigned and getattr(node.targets[0], "id", "") == "__all__":
            exported = ast.literal_eval(node.value)
    assert [one for one in exported if f'id="llm_course.{name}.{one}"' not in page] == []
    lesson = next(path for path in NOTEBOOKS if exported_module(path) == name)
    assert f"{lesson.stem}.html" in page


def test_shapes_come_from_the_signatures(site):
    text = text_of(site / "api" / "attention.html")
    assert "q – (..., T, D) what each position looks for" in text
    assert "mask – (..., T, S) bool, True where q may look at k" in text
    source = (ROOT / "llm_course" / "attention.py").read_text(encoding="utf-8")
    comment = re.search(r"def softmax\(\n.*\n.*\n\) -> Tensor: +# (.*)", source).group(1)
    assert f"Returns: {comment}" in text


def test_a_warning_fails_the_build(tmp_path):
    unwanted = ("__pycache__", ".ipynb_checkpoints", "0[1-9]*.ipynb", "[1-9]*.ipynb", "widgets")
    for name in ("docs", "nbs"):
        ignore = shutil.ignore_patterns(*unwanted)
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    shutil.copytree(ROOT / "llm_course", tmp_path / "llm_course")
    for name in ("settings.ini", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").write_text("# llm_course\n\n[nothing](nbs/55_nothing.ipynb)\n")
    run = build(tmp_path, tmp_path / "out")
    assert run.returncode != 0
    assert "55_nothing" in run.stderr


@pytest.fixture
def page(chromium, address):
    "A page on which nothing may go wrong, be missing, or be asked of another host."
    page = chromium.new_page()
    wrong = []

    def on_request(request):
        if not request.url.startswith((address, "data:")):
            wrong.append(request.url)

    def on_response(response):
        if response.status >= 400:
            wrong.append(f"{response.status} {response.url}")

    def on_console(said):
        if said.type == "error":
            wrong.append(said.text)

    page.on("request", on_request)
    page.on("response", on_response)
    page.on("console", on_console)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    yield page
    page.close()
    assert wrong == []


GROUND = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
WIDTH = "document.documentElement.scrollWidth"


LOOKS = [*product(SIZES, ("light", "dark"))]
FEW_LOOKS = [("phone", "light"), ("desk", "dark")]
ONE_LOOK = [("phone", "dark")]  # at a page of the reference: all are alike


def test_every_page_in_the_browser(page, address):
    "Every page has its colors, and nothing has to be scrolled sideways."
    for name in PAGES:
        page.goto(f"{address}{name}.html")
        looks = ONE_LOOK if name.startswith("api/") else FEW_LOOKS
        for size, scheme in LOOKS if name in PICTURED else looks:
            width, height = SIZES[size]
            page.set_viewport_size({"width": width, "height": height})
            page.emulate_media(color_scheme=scheme)
            ground = page.evaluate(GROUND)
            assert max(ground) < 64 if scheme == "dark" else min(ground) > 192
            assert page.evaluate(WIDTH) <= width, f"{name} does not fit on a {size}"
            if name in PICTURED:
                picture = f"site-{name.replace('/', '-')}-{size}-{scheme}.png"
                page.screenshot(path=SCREENSHOTS / picture)


# WCAG 2: the contrast of a text with the page below it.
CONTRAST = """(element) => {
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (color) => color.match(/[\\d.]+/g).slice(0, 3)
    .map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const colors = [getComputedStyle(element).color, getComputedStyle(document.body).backgroundColor];
  const [a, b] = colors.map(light).sort((a, b) => b - a);
  return (a + 0.05) / (b + 0.05);
}"""
WORDS = ("p", ".llm-attention .said", ".llm-lens .top p", ".llm-line")


@pytest.fixture(params=[*product(SIZES, ("light", "dark"))], ids="-".join)
def widget(page, address, request):
    "Finds a widget on a page of one size and one color; in the end looks at it."
    size, scheme = request.param
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)
    seen = []

    def find(name, inside):
        page.goto(f"{address}{name}.html")
        seen.append(page.locator(".live-widget", has=page.locator(inside)))
        expect(seen[0].locator(inside)).to_be_visible()
        return seen[0]

    yield find
    assert page.evaluate(WIDTH) <= width, "the page has to be scrolled sideways"
    expect(seen[0].get_by_text("No kernel runs behind this page")).to_be_visible()
    assert seen[0].locator("textarea").is_disabled()
    seen[0].scroll_into_view_if_needed()
    picture = f"site-{request.node.originalname}-{size}-{scheme}.png"
    page.screenshot(path=SCREENSHOTS / picture)
    for part in WORDS:
        for words in seen[0].locator(part).all():
            assert words.evaluate(CONTRAST) > 4.5, part


@pytest.fixture(scope="module")
def reading():
    "What lesson 10's widgets look at: the bundled model, its tokenizer, the ids of the text."
    sources = "\n".join(cell.source for cell in nbformat.read(INSIDE, 4).cells)
    text = re.search('^text = "(.*)"$', sources, re.M).group(1)
    model, tokenizer = load_model()
    return model, tokenizer, prompt_ids(model, tokenizer, text)


def test_attention_is_explored_without_a_kernel(widget, reading):
    """Point at a token, walk with the keys, pick a layer and a head: each time the sentence is what
    the model's own maps say."""
    model, tokenizer, ids = reading
    maps = attention_maps(model, ids)
    names = [show_token(tokenizer.decode([i])) for i in ids]
    shown = widget("nbs/10_look_inside", ".llm-attention")
    words = shown.locator(".words span")
    said = shown.locator(".said")
    assert words.all_inner_texts() == names

    def drawn():
        return shown.locator("canvas").evaluate("(canvas) => canvas.toDataURL()")

    def agrees(row, weights):
        expect(said).to_contain_text(re.compile(rf"^{re.escape(names[row])} looks at "))
        first, percent = re.search(r"looks at\s+(.+?) (\d+) %", said.inner_text()).groups()
        best = weights[row].argmax().item()
        assert first == names[best]
        assert abs(int(percent) - 100 * weights[row, best].item()) < 1

    layer, head = farthest_look(maps)
    agrees(len(ids) - 1, maps[layer, head])
    words.nth(7).hover()
    agrees(7, maps[layer, head])
    words.nth(7).press("ArrowRight")
    expect(words.nth(8)).to_be_focused()
    agrees(8, maps[layer, head])
    other = (layer + 1) % len(maps)
    choices = (
        ("layer", f"layer {other}", maps[other, head]),
        ("head", "mean of heads", maps[other].mean(0)),
    )
    for name, option, weights in choices:
        before = drawn()
        shown.get_by_label(name).select_option(option)
        assert drawn() != before
        agrees(8, weights)
    words.nth(8).press("Home")
    agrees(0, maps[other].mean(0))


def test_the_logit_lens_is_explored_without_a_kernel(widget, reading):
    "Choose a cell, walk to the next: its ten likeliest tokens are those that the model gives."
    model, tokenizer, ids = reading
    table = lens_table(logit_lens(model, ids), tokenizer, ids)
    top = table["top"]
    shown = widget("nbs/10_look_inside", ".llm-lens")
    rows = shown.locator(".top div")
    title = shown.locator(".top p")

    def cell(row, layer):
        return shown.locator("tbody tr").nth(row).locator("td").nth(layer)

    def agrees(row, layer):
        wanted = [name + " ✓" * came for name, _, came in top[row][layer]]
        expect(rows.locator("code")).to_have_text(wanted)
        expect(rows.locator("b").first).to_have_text(f"{100 * top[row][layer][0][1]:.1f} %")

    agrees(len(ids) - 1, 4)
    cell(4, 0).click()
    expect(title).to_contain_text(f"after the embedding, at {table['read'][4]}")
    agrees(4, 0)
    cell(4, 0).press("ArrowRight")
    shown.locator("td:focus").press("Enter")
    expect(title).to_contain_text(f"after layer 0, at {table['read'][4]}")
    agrees(4, 1)


def test_tokens_are_looked_at_without_a_kernel(widget):
    """Point at a token, walk to the next: the line says its id and its bytes. The slider over the
    merges would ask the kernel, and rests."""
    shown = widget("nbs/01_tokenizer", ".llm-strip")
    tokens = shown.locator(".llm-strip span")
    line = shown.locator(".llm-line")
    found = r"^token 3 +·found +id \d+ +6 bytes 20 66 6F 75 6E 64$"
    tokens.nth(2).hover()
    expect(line).to_contain_text(re.compile(found))
    tokens.nth(2).press("ArrowRight")
    expect(line).to_contain_text(re.compile(r"^token 4 +·the +id \d+ +4 bytes 20 74 68 65$"))
    expect(shown.locator("[inert] input[type=range]")).to_have_count(1)


FOLDS = ".cell > details"


def test_a_switch_opens_package_code_and_tests(page, address):
    "It opens all that is folded on a page, and keeps its place on the next."
    page.goto(f"{address}nbs/03b_cache.html")
    switch = page.get_by_label("show package code and tests")
    folds = page.locator(FOLDS)
    assert folds.count() > 5
    package = page.locator(".tag_package > details").first
    assert package.locator("summary").inner_text().startswith("Package: ")
    expect(package.locator(".highlight")).to_be_hidden()
    switch.check()
    expect(package.locator(".highlight")).to_be_visible()
    expect(page.locator(f"{FOLDS}[open]")).to_have_count(folds.count())
    page.goto(f"{address}nbs/03a_positions.html")
    expect(switch).to_be_checked()
    expect(page.locator(f"{FOLDS}[open]")).to_have_count(folds.count())
    switch.uncheck()
    expect(page.locator(f"{FOLDS}[open]")).to_have_count(0)


@pytest.mark.parametrize("path", ROAD, ids=lambda path: path.stem)
def test_a_solution_is_folded_below_its_exercise(page, address, path):
    "A reader sees the stub and its checks, without nbdev's words, and opens the solution by hand."
    page.goto(f"{address}{without_ending(path)}.html")
    solutions = page.locator(".cell.tag_solution")
    wanted = [cell for cell in nbformat.read(path, 4).cells if is_solution(cell)]
    expect(solutions).to_have_count(len(wanted))
    expect(page.locator(".cell.tag_exercise")).to_have_count(len(wanted))
    expect(page.locator(".cell.tag_check")).to_have_count(len(wanted))
    assert "#| exercise" not in page.locator("article").inner_text()
    for solution in solutions.all():
        code = solution.locator(".highlight")
        expect(code).to_be_hidden()
        solution.get_by_text("Solution").locator("visible=true").click()
        expect(code).to_be_visible()


def test_search_finds_a_function(page, address):
    page.goto(f"{address}nbs/00_start.html")
    search = page.get_by_role("textbox", name="Search").first
    search.fill("scaled_dot_product_attention")
    page.keyboard.press("Enter")
    page.locator("#search-results a[href*='api/attention.html']").first.click()
    assert "attention" in page.title()
