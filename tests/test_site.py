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
from test_notebooks import ENV, MODULES, NOTEBOOKS, ROOT, exported_module

PAGES = ["index", *(p.relative_to(ROOT).with_suffix("").as_posix() for p in NOTEBOOKS), *(f"api/{p.stem}" for p in MODULES), "CONTRIBUTING"]
SIZES = {"phone": (375, 812), "desk": (1300, 900)}


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
        widgets = [o["data"]["text/plain"] for o in cell.get("outputs", ()) if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
        assert all(re.sub(r"\s+", " ", str(words)) in text for words in widgets)


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
    for name in ("docs", "nbs", "llm_course", "data/pretrained"): shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "0[1-9]*.ipynb", "[1-9]*.ipynb"))
    for name in ("settings.ini", "CONTRIBUTING.md"): shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").write_text("# llm_course\n\n[nothing](nbs/55_nothing.ipynb)\n")
    run = subprocess.run([sys.executable, tmp_path / "docs" / "build.py", tmp_path / "out"], env=ENV, capture_output=True, text=True, timeout=300)
    assert run.returncode != 0 and "55_nothing" in run.stderr


def test_every_page_in_the_browser(chromium, address):
    "Nothing is asked of another host, nothing is missing, and nothing has to be scrolled sideways."
    page, wrong = chromium.new_page(), []
    page.on("request", lambda request: request.url.startswith((address, "data:")) or wrong.append(request.url))
    page.on("response", lambda response: response.status < 400 or wrong.append(f"{response.status} {response.url}"))
    page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    for name, scheme in product(PAGES, ("light", "dark")):
        page.emulate_media(color_scheme=scheme)
        page.goto(f"{address}{name}.html")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
        assert max(ground) < 64 if scheme == "dark" else min(ground) > 192
        for size, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} does not fit on a {size}"
            if name in ("index", "nbs/02_attention", "api/attention"): page.screenshot(path=SCREENSHOTS / f"site-{name.replace('/', '-')}-{size}-{scheme}.png")
    assert wrong == []
    page.close()


def test_search_finds_a_function(chromium, address):
    page = chromium.new_page()
    page.goto(f"{address}nbs/00_corpus.html")
    page.get_by_role("textbox", name="Search").first.fill("scaled_dot_product_attention")
    page.keyboard.press("Enter")
    page.locator("#search-results a[href*='api/attention.html']").first.click()
    assert "attention" in page.title()
    page.close()
