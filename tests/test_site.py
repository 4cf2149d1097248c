"`docs/build.py` builds a site offline: complete, connected, and readable in a real browser on a phone and on a desk, by day and by night."
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
from conftest import SCREENSHOTS
from playwright.sync_api import expect
from test_notebooks import ENV, MODULES, NOTEBOOKS, ROOT, exported_module

from llm_course.checkpoint import load_model
from llm_course.sampling import prompt_ids
from llm_course.viz import show_token
from llm_course.widgets import attention_maps, lens_table, logit_lens

PAGES = ["index", *(p.relative_to(ROOT).with_suffix("").as_posix() for p in NOTEBOOKS), *(f"api/{p.stem}" for p in MODULES), "CONTRIBUTING"]
SIZES = {"phone": (375, 812), "desk": (1300, 900)}
LIVE = {"AttentionExplorer", "LogitLens", "TokenizerExplorer"}   # what works on a page, in part


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The built site."
    folder = tmp_path_factory.mktemp("site")
    run = subprocess.run([sys.executable, ROOT / "docs" / "build.py", folder], env=ENV, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout + run.stderr) == (0, ""), run.stdout + run.stderr
    return folder


@pytest.fixture(scope="module")
def address(site):
    "Where the site is served from."
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def text_of(page):
    "What a page says, its white space as one blank."
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))))


def widget_lines(cell):
    "The line of words that stands for each widget that a cell shows."
    return [o["data"]["text/plain"] for o in cell.get("outputs", ()) if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]


def test_one_page_leads_to_the_next_and_back(site):
    "From the first page, `next` passes through every lesson and every module."
    def neighbour(page, which):
        found = re.search(rf'rel="{which}" title="[^"]*" href="([^"]+)"', page.read_text(encoding="utf-8"))
        return (page.parent / found.group(1)).resolve() if found else None
    page, seen = site.resolve() / "index.html", []
    while page:
        seen.append(page.relative_to(site.resolve()).with_suffix("").as_posix())
        if following := neighbour(page, "next"): assert neighbour(following, "prev") == page
        page = following
    assert seen[0] == "index" and sorted(seen) == sorted(PAGES)
    assert [name for name in seen if re.match(r"nbs/\d", name)] == [name for name in PAGES if re.match(r"nbs/\d", name)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_shows_its_source_and_its_figures(site, path):
    page, cells = (site / path.relative_to(ROOT)).with_suffix(".html"), nbformat.read(path, 4).cells
    figures = sum("image/png" in output.get("data", {}) for cell in cells if cell.cell_type == "code" for output in cell.outputs)
    shown = re.findall(r'<img alt="figure" src="([^"]+)"', page.read_text(encoding="utf-8"))
    assert len(shown) == figures and all((page.parent / name).is_file() for name in shown)
    text = text_of(page)
    for cell in cells:
        if cell.cell_type == "code" and cell.source.startswith("#| export"): assert re.sub(r"\s+", " ", cell.source).strip() in text
        assert all(words in text for words in widget_lines(cell))
    live = [words for cell in cells for words in widget_lines(cell) if words.partition(":")[0] in LIVE]
    assert page.read_text(encoding="utf-8").count('<div class="live-widget">') == len(live)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_has_every_exported_name(site, module):
    page = (site / "api" / f"{module.stem}.html").read_text(encoding="utf-8")
    exported = next(node.value for node in ast.parse(module.read_text(encoding="utf-8")).body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__")
    assert [name for name in ast.literal_eval(exported) if f'id="llm_course.{module.stem}.{name}"' not in page] == []
    assert next(f"{p.stem}.html" for p in NOTEBOOKS if exported_module(p) == module.stem) in page


def test_shapes_come_from_the_signatures(site):
    text = text_of(site / "api" / "attention.html")
    for part in ("q – (..., T, D) what each position looks for", "mask – (..., T, S) bool, True where q may look at k"): assert part in text
    source = (ROOT / "llm_course" / "attention.py").read_text(encoding="utf-8")
    comment = re.search(r"def softmax\(\n.*\n.*\n\) -> Tensor: +# (.*)", source).group(1)
    assert f"Returns: {comment}" in text


def test_a_warning_fails_the_build(tmp_path):
    for name in ("docs", "nbs", "llm_course", "data/pretrained"): shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "0[1-9]*.ipynb", "[1-9]*.ipynb", "widgets.ipynb"))
    for name in ("settings.ini", "CONTRIBUTING.md"): shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").write_text("# llm_course\n\n[nothing](nbs/55_nothing.ipynb)\n")
    run = subprocess.run([sys.executable, tmp_path / "docs" / "build.py", tmp_path / "out"], env=ENV, capture_output=True, text=True, timeout=300)
    assert run.returncode != 0 and "55_nothing" in run.stderr


@pytest.fixture
def page(chromium, address):
    "A page on which nothing may go wrong, be missing, or be asked of another host."
    page, wrong = chromium.new_page(), []
    page.on("request", lambda request: request.url.startswith((address, "data:")) or wrong.append(request.url))
    page.on("response", lambda response: response.status < 400 or wrong.append(f"{response.status} {response.url}"))
    page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    yield page
    page.close()
    assert wrong == []


def test_every_page_in_the_browser(page, address):
    "Every page has its colours, and nothing has to be scrolled sideways."
    for name, scheme in product(PAGES, ("light", "dark")):
        page.emulate_media(color_scheme=scheme)
        page.goto(f"{address}{name}.html")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
        assert max(ground) < 64 if scheme == "dark" else min(ground) > 192
        for size, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} does not fit on a {size}"
            if name in ("index", "nbs/02_attention", "api/attention"): page.screenshot(path=SCREENSHOTS / f"site-{name.replace('/', '-')}-{size}-{scheme}.png")


@pytest.fixture(params=[*product(SIZES, ("light", "dark"))], ids="-".join)
def widget(page, address, request):
    "Finds a widget on a page of one size and one colour; in the end looks at it."
    (size, scheme), seen = request.param, []
    page.set_viewport_size(dict(zip(("width", "height"), SIZES[size])))
    page.emulate_media(color_scheme=scheme)
    def find(name, inside):
        page.goto(f"{address}{name}.html")
        seen.append(page.locator(".live-widget", has=page.locator(inside)))
        expect(seen[0].locator(inside)).to_be_visible()
        return seen[0]
    yield find
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0], "the page has to be scrolled sideways"
    expect(seen[0].get_by_text("No kernel runs behind this page")).to_be_visible()
    assert seen[0].locator("textarea").is_disabled()
    seen[0].scroll_into_view_if_needed()
    page.screenshot(path=SCREENSHOTS / f"site-{request.node.originalname}-{size}-{scheme}.png")
    for part in ("p", ".llm-attention .said", ".llm-lens .top p", ".llm-line"):
        for words in seen[0].locator(part).all():
            assert words.evaluate(CONTRAST) > 4.5, part


CONTRAST = """(element) => {  // WCAG 2: of a text, with the page below it
  const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const [a, b] = [getComputedStyle(element).color, getComputedStyle(document.body).backgroundColor].map(light).sort((a, b) => b - a);
  return (a + 0.05) / (b + 0.05);
}"""


@pytest.fixture(scope="module")
def reading():
    "What lesson 11's widgets look at: the bundled model, its tokenizer, and the ids of the lesson's text."
    text = next(match for cell in nbformat.read(ROOT / "nbs/11_pretrained.ipynb", 4).cells if (match := re.search('^text = "(.*)"$', cell.source, re.M))).group(1)
    model, tokenizer = load_model(ROOT / "data" / "pretrained")
    return model, tokenizer, prompt_ids(model, tokenizer, text)


def test_attention_is_explored_without_a_kernel(widget, reading):
    "Point at a token, walk with the keys, pick a layer and a head: each time the sentence is what the model's own maps say."
    model, tokenizer, ids = reading
    maps, names = attention_maps(model, ids), [show_token(tokenizer.decode([i])) for i in ids]
    shown = widget("nbs/11_pretrained", ".llm-attention")
    words, said, drawn = shown.locator(".words span"), shown.locator(".said"), lambda: shown.locator("canvas").evaluate("(canvas) => canvas.toDataURL()")
    assert words.all_inner_texts() == names
    def agrees(row, weights):
        expect(said).to_contain_text(re.compile(rf"^{re.escape(names[row])} looks at "))
        first, percent = re.search(r"looks at\s+(.+?) (\d+) %", said.inner_text()).groups()
        best = weights[row].argmax().item()
        assert first == names[best] and abs(int(percent) - 100 * weights[row, best].item()) < 1
    agrees(len(ids) - 1, maps[0].mean(0))
    words.nth(7).hover()
    agrees(7, maps[0].mean(0))
    words.nth(7).press("ArrowRight")
    expect(words.nth(8)).to_be_focused()
    agrees(8, maps[0].mean(0))
    for name, other, weights in (("layer", "layer 3", maps[3].mean(0)), ("head", "head 2", maps[3, 2])):
        before = drawn()
        shown.get_by_label(name).select_option(other)
        assert drawn() != before
        agrees(8, weights)
    words.nth(8).press("Home")
    agrees(0, maps[3, 2])


def test_the_logit_lens_is_explored_without_a_kernel(widget, reading):
    "Choose a cell, walk to the next: its ten likeliest tokens are those that the model gives."
    model, tokenizer, ids = reading
    top = lens_table(logit_lens(model, ids), tokenizer, ids)["top"]
    shown = widget("nbs/11_pretrained", ".llm-lens")
    rows, title, cell = shown.locator(".top div"), shown.locator(".top p"), lambda t, l: shown.locator("tbody tr").nth(t).locator("td").nth(l)
    def agrees(t, l):
        expect(rows.locator("code")).to_have_text([name + " ✓" * came for name, _, came in top[t][l]])
        expect(rows.locator("b").first).to_have_text(f"{100 * top[t][l][0][1]:.1f} %")
    agrees(len(ids) - 1, 4)
    cell(4, 0).click()
    expect(title).to_contain_text("after the embedding, at ·a")
    agrees(4, 0)
    cell(4, 0).press("ArrowRight")
    shown.locator("td:focus").press("Enter")
    expect(title).to_contain_text("after layer 0, at ·a")
    agrees(4, 1)


def test_tokens_are_looked_at_without_a_kernel(widget):
    "Point at a token, walk to the next: the line says its id and its bytes. The slider over the merges would ask the kernel, and rests."
    shown = widget("nbs/01_tokenizer", ".llm-strip")
    tokens, line = shown.locator(".llm-strip span"), shown.locator(".llm-line")
    tokens.nth(2).hover()
    expect(line).to_contain_text(re.compile(r"^token 3 +·found +id \d+ +6 bytes 20 66 6F 75 6E 64$"))
    tokens.nth(2).press("ArrowRight")
    expect(line).to_contain_text(re.compile(r"^token 4 +·the +id \d+ +4 bytes 20 74 68 65$"))
    expect(shown.locator("[inert] input[type=range]")).to_have_count(1)


def test_search_finds_a_function(page, address):
    page.goto(f"{address}nbs/00_corpus.html")
    page.get_by_role("textbox", name="Search").first.fill("scaled_dot_product_attention")
    page.keyboard.press("Enter")
    page.locator("#search-results a[href*='api/attention.html']").first.click()
    assert "attention" in page.title()
