"Every lesson in JupyterLab in a real browser: Run All, then move, press and type in its widgets, and read what the page says."
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import nbformat
import pytest
from conftest import SCREENSHOTS
from playwright.sync_api import expect
from test_notebooks import ENV, NOTEBOOKS, ROOT, is_skipped

SETTINGS = {  # no question about news; every cell in the page, also those that are scrolled out of sight
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
READY = """async () => {
  await jupyterapp.restored;
  const panel = jupyterapp.shell.currentWidget;
  await panel.context.ready; await panel.sessionContext.ready;
  const kernel = panel.sessionContext.session.kernel;
  await kernel.info;
  window.kernelErrors = [];  // whatever goes wrong in the kernel passes here, also what an Output widget or Lab's log would swallow
  kernel.iopubMessage.connect((_, { header, content }) => {
    if (header.msg_type === "error") kernelErrors.push(content.ename + ": " + content.evalue);
    if (header.msg_type === "stream" && content.text.includes("Traceback (most recent call last)")) kernelErrors.push(content.text);
  });
}"""
RUN_ALL = "() => jupyterapp.commands.execute('notebook:run-all-cells')"
CELLS = "() => jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells"

HIDDEN = [  # cells that all succeed, each with another error in it
    "import anywidget, ipywidgets, threading\nwith ipywidgets.Output(): 1 / 0",
    "ipywidgets.interact(lambda x: [][x], x=3);",
    "thread = threading.Thread(target=lambda: {}['a thread'])\nthread.start()\nthread.join()",
    "ipywidgets.HTML('<b>ValueError: in a line for errors</b>')",
    "class Broken(anywidget.AnyWidget): _esm = 'export default { render() { console.error(\"in the console\") } }'\nBroken()",
]


def working_copy():
    "A digest of every file that opening and running the lessons could change."
    files = [p for folder in ("nbs", "llm_course", "configs", "data/pretrained") for p in (ROOT / folder).rglob("*")]
    return {str(p.relative_to(ROOT)): sha256(p.read_bytes()).hexdigest() for p in files if p.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in p.relative_to(ROOT).parts)}


def copy_lessons(folder):
    "The lessons in another folder, without outputs and without the cells that tests skip, beside what they read."
    for name in ("configs", "data/pretrained"): shutil.copytree(ROOT / name, folder / name)
    for name in ("settings.ini", "data/speedrun.json"): shutil.copy(ROOT / name, folder / name)
    for path in NOTEBOOKS:
        notebook, copy = nbformat.read(path, 4), folder / path.relative_to(ROOT)
        notebook.cells = [cell for cell in notebook.cells if cell.cell_type != "code" or not is_skipped(cell)]
        for cell in notebook.cells: cell.update({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {})
        copy.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, copy)
    for name, sources in (("empty", ["1 + 1"]), ("hidden", HIDDEN)):
        notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
        nbformat.write(notebook, folder / "nbs" / f"{name}.ipynb")


@contextmanager
def jupyter_lab(root, folder):
    "`jupyter lab` over `root` with all of its own files in `folder`: its address and token."
    env = ENV | {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")} | {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"), "IPYTHONDIR": str(folder / "ipython")}
    for name, values in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    command = [Path(sys.executable).parent / "jupyter", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--ServerApp.root_dir={root}", "--LabApp.expose_app_in_browser=True"]
    with open(SCREENSHOTS / "lab.log", "w") as log, subprocess.Popen(command, env=env, cwd=root, stdout=log, stderr=log, stdin=subprocess.DEVNULL) as server:
        try:
            end, found = time.time() + 120, []
            while not found:
                assert server.poll() is None and time.time() < end, (SCREENSHOTS / "lab.log").read_text()[-4000:]
                time.sleep(0.1)
                found = list((folder / "runtime").glob(f"jpserver-{server.pid}.json"))
            said = json.loads(found[0].read_text())
            yield f"http://127.0.0.1:{said['port']}", said["token"]
        finally:
            server.terminate()


class Lab:
    "One server and one browser; the lesson that was opened last stays open until another is asked for."

    def __init__(self, browser, address, token):
        self.browser, self.address, self.token = browser, address, token
        self.page, self.path, self.console, self.usual = None, None, [], set()
        self.open("nbs/empty.ipynb")
        self.usual = set(self.console)

    def listen(self, page):
        "Keep what the console reports as an error, without what differs from one run to the next."
        plain = lambda text: re.sub(r"[0-9a-f]{8,}|\d+", "N", text.replace(self.path, "PATH").replace(self.address, "LAB"))
        page.on("console", lambda said: said.type == "error" and self.console.append(plain(f"{said.text} {said.location['url'].split('?')[0]}")))
        page.on("pageerror", lambda error: self.console.append(plain(str(error))))

    def open(self, path):
        "A page on which every cell of the notebook has run."
        if self.path == path: return self.page
        self.close()
        self.path, self.console[:] = path, []
        self.page = self.browser.new_page(viewport={"width": 1300, "height": 1000})
        self.listen(self.page)
        self.page.goto(f"{self.address}/lab/tree/{path}?token={self.token}&reset")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
        self.page.wait_for_function("() => window.jupyterapp", timeout=120_000)
        self.ask(READY, 120)
        self.all_ran = self.ask(RUN_ALL, 300)
        return self.page

    def ask(self, code, seconds):
        "What an asynchronous function returns in the page, or a failure after so many seconds."
        late = f"new Promise((_, fail) => setTimeout(() => fail(new Error('not done after {seconds} s')), {1000 * seconds}))"
        return self.page.evaluate(f"() => Promise.race([({code})(), {late}])")

    def close(self):
        "Close the page, and end its kernel with it."
        if self.page is None: return
        self.page.close()
        ask = lambda path, **kwargs: urllib.request.urlopen(urllib.request.Request(f"{self.address}/api/{path}?token={self.token}", **kwargs), timeout=60).read()
        for session in json.loads(ask("sessions")): ask(f"sessions/{session['id']}", method="DELETE")
        self.page = self.path = None


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    before, root, own = working_copy(), tmp_path_factory.mktemp("lessons"), tmp_path_factory.mktemp("jupyter")
    for old in SCREENSHOTS.glob("*"): old.unlink(missing_ok=True)
    copy_lessons(root)
    with jupyter_lab(root, own) as server:
        lab = Lab(chromium, *server)
        yield lab
        lab.close()
    assert working_copy() == before, "running the lessons in a copy has changed the original"


def troubles(lab):
    "Each error in the kernel, on the page, in a widget's line for errors and in the console."
    shown = [*lab.page.locator("[data-mime-type='application/vnd.jupyter.error']").all_inner_texts(), *lab.page.locator(".jupyter-widgets b").all_inner_texts()]
    return [*lab.page.evaluate("kernelErrors"), *(text for text in shown if re.search(r"(Error|Exception|Interrupt)\b", text)), *(set(lab.console) - lab.usual)]


def until_other(read, before, seconds=30):
    "What `read()` says as soon as it is not `before`, and has stopped changing."
    end, last, since = time.time() + seconds, before, time.time()
    while last == before or time.time() - since < 0.7:
        assert time.time() < end, f"still {before!r}" if last == before else f"still changing: {last!r}"
        time.sleep(0.05)
        now = read()
        if now != last: last, since = now, time.time()
    return last


def slider(widget, name):
    "The handle of the slider with this name: ipywidgets' own has its name beside it."
    return widget.locator(".widget-slider", has_text=name).get_by_role("slider").or_(widget.get_by_role("slider", name=name)).first


def drive_tokenizer(widget, shoot):
    "Type: the tokens are the text's. Move the slider: they go back to bytes and up again. Walk: the line names each token."
    text, tokens = "the mat sat on the cat.", lambda: widget.locator(".llm-strip span").all_inner_texts()
    before = tokens()
    widget.locator("textarea").fill(text)
    typed = until_other(tokens, before)
    assert "".join(typed).replace("·", " ") == text and 1 < len(typed) < len(text)
    expect(widget.get_by_text(re.compile(rf"^{len(typed)} tokens, {len(text)} bytes, {len(text)} characters"))).to_be_visible()
    shoot("typed")
    slider(widget, "merges").press("Home")
    assert until_other(tokens, typed) == list(text.replace(" ", "·"))
    expect(widget.locator(".llm-step")).to_contain_text("step 0 of ")
    slider(widget, "merges").press("ArrowRight")
    assert len(until_other(tokens, list(text.replace(" ", "·")))) < len(text)
    expect(widget.locator(".llm-step")).to_contain_text(re.compile(r"step 1 of \d+: merge .* → "))
    shoot("first-merge")
    slider(widget, "merges").press("End")
    expect(widget.locator(".llm-strip span")).to_have_text(typed)
    widget.locator(".llm-strip span").first.press("ArrowRight")
    expect(widget.locator(".llm-line")).to_contain_text(re.compile(rf"^token 2 +{re.escape(typed[1])} +id \d"))


def drive_attention(widget, shoot):
    "Type: the words are the text's. Pick a head: the map and the sentence are others. Walk: another token looks."
    words, said = (lambda: widget.locator(".words span").all_inner_texts()), (lambda: widget.locator(".said").inner_text())
    drawn = lambda: widget.locator("canvas").evaluate("(canvas) => canvas.toDataURL()")
    before, text = words(), "the mat sat on the cat."
    widget.locator("textarea").fill(text)
    typed = until_other(words, before)
    assert "".join(typed).replace("·", " ").endswith(text) and said().startswith(f"{typed[-1]} looks at ")
    shoot("typed")
    for name, other in (("head", "head 0"), ("layer", "layer 1")):
        picture = drawn()
        widget.locator(".widget-dropdown", has_text=name).locator("select").select_option(other)
        until_other(drawn, picture)
    shoot("layer-1-head-0")
    widget.locator(".words span").last.press("ArrowLeft")
    expect(widget.locator(".said")).to_contain_text(re.compile(rf"^{re.escape(typed[-2])} looks at "))


def drive_playground(widget, shoot):
    "Type and move a slider: the bars are others. Generate: the same text each time at temperature 0. Choose another token for one: the text goes on from there, and Undo brings the old one back."
    bars, text = (lambda: widget.locator(".llm-next .num").all_inner_texts()), (lambda: widget.locator(".llm-written .page").inner_text())
    tokens, temperature, written = widget.locator(".llm-written .page span[role=button]"), slider(widget, "temperature"), []
    before, prompt = bars(), "the mat"
    widget.locator("textarea").first.fill(prompt)
    before = until_other(bars, before)
    shoot("typed")
    for key in ("End", "Home", "End", "Home"):
        temperature.press(key)
        before = until_other(bars, before)
        last = text()
        widget.get_by_role("button", name="Generate").click()
        until_other(text, last, 120)
        expect(widget.locator(".llm-written .writing")).to_have_count(0)
        written.append(text())
    shoot("written")
    assert all(prompt in text.replace("·", " ") and len(text) > len(prompt) + 3 for text in written), written
    assert written[1] == written[3] and len(set(written)) == 3, written
    tokens.nth(3).click()
    shoot("looked-into")
    last = text()
    widget.locator(".llm-next .rows button").nth(1).click()
    until_other(text, last, 120)
    expect(widget.locator(".llm-written .writing")).to_have_count(0)
    shoot("another-token")
    widget.get_by_role("button", name="Undo").click()
    expect(widget.locator(".llm-written .page")).to_have_text(last)


def drive_training(widget, shoot):
    "Start: the steps count up. Pause: they stand. Continue: they count up again. Stop: it is over, and says so."
    line, state, go = widget.locator(".llm-training .line"), widget.locator(".llm-training b"), widget.get_by_role("button").first
    step = lambda: int(re.search(r"step ([\d,]+) of", line.inner_text()).group(1).replace(",", ""))
    assert step() == 0
    go.press("Enter")
    expect(line).to_contain_text(re.compile(r"step [1-9][\d,]* of"), timeout=60_000)
    go.press("Enter")
    expect(state).to_have_text("paused", timeout=30_000)
    held = step()
    shoot("paused")
    time.sleep(1)
    assert step() == held > 0
    go.press("Enter")
    until_other(lambda: step() > held, False, 60)
    widget.get_by_role("button", name="Stop").press("Enter")
    expect(state).to_have_text(re.compile("stopped|finished"), timeout=30_000)
    shoot("stopped")


def drive_lens(widget, shoot):
    "Type: the rows are the text's tokens. Choose a cell: its ten likeliest tokens are others. Walk with the arrow keys: the next cell's."
    rows, title = (lambda: widget.locator(".llm-lens tbody th").all_inner_texts()), widget.locator(".llm-lens .top p")
    before, text = rows(), "the mat sat"
    widget.locator("textarea").fill(text)
    typed = until_other(rows, before)
    assert "".join(typed).replace("·", " ").endswith(text), typed
    shoot("typed")
    widget.locator(".llm-lens tbody tr").nth(1).locator("td").first.click()
    expect(title).to_contain_text("after the embedding, at ")
    expect(widget.locator(".llm-lens .top div")).to_have_count(10)
    widget.locator(".llm-lens tbody tr").nth(1).locator("td").first.press("ArrowRight")
    widget.locator(".llm-lens td:focus").press("Enter")
    expect(title).to_contain_text("after layer 0, at ")
    shoot("layer-0")


def drive_doubler(widget, shoot):
    "The smallest explorer of lesson `widgets`: move its slider."
    expect(widget).to_contain_text("16")
    slider(widget, "x").press("ArrowRight")
    expect(widget).to_contain_text("18")


DRIVE = {"Doubler": drive_doubler, "TokenizerExplorer": drive_tokenizer, "AttentionExplorer": drive_attention, "Playground": drive_playground, "TrainingDashboard": drive_training, "LogitLens": drive_lens}


def explorers(cells):
    "The widgets that these cells show, and the number of the cell, by what the output says in words."
    said = [(i, str(output.get("data", {}).get("text/plain"))) for i, cell in enumerate(cells) for output in cell.get("outputs", ())]
    return {match.group(1): i for i, text in said if (match := re.match(r"(\w+): run this cell in Jupyter", text))}


def checks():
    "Each notebook as a whole, and then each widget that it shows."
    for path in NOTEBOOKS:
        names = explorers(nbformat.read(path, 4).cells)
        yield pytest.param(path, None, set(names), id=path.stem)
        for name in names: yield pytest.param(path, name, set(names), id=f"{path.stem}-{name}")


@pytest.mark.parametrize("path, widget, committed", [*checks()])
def test_in_the_browser(lab, path, widget, committed, request):
    page = lab.open(str(path.relative_to(ROOT)))
    shoot = lambda where, name="": where.screenshot(path=SCREENSHOTS / f"{'-'.join(filter(None, (request.node.callspec.id, name)))}.png")
    cells = page.evaluate(CELLS)
    if widget is None:
        shoot(page)
        assert [cell["source"] for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip() and not cell["execution_count"]] == []
        assert lab.all_ran and set(explorers(cells)) == committed
        expect(page.get_by_text("Loading widget...")).to_have_count(0, timeout=30_000)
    else:
        shown = page.locator(".jp-Notebook .jp-Cell").nth(explorers(cells)[widget]).locator(".jp-OutputArea-output .widget-vbox").first
        shown.scroll_into_view_if_needed()
        DRIVE[widget](shown, lambda name: shoot(shown, name))
    assert troubles(lab) == []


def test_hidden_errors_are_seen(lab):
    page = lab.open("nbs/hidden.ipynb")
    page.get_by_text("ValueError: in a line for errors").last.wait_for()
    assert lab.all_ran and all(cell["execution_count"] and not [o for o in cell["outputs"] if o["output_type"] == "error"] for cell in page.evaluate(CELLS))
    found = "\n".join(troubles(lab))
    for part in ("ZeroDivisionError", "IndexError", "KeyError: 'a thread'", "ValueError: in a line for errors", "in the console"): assert part in found
