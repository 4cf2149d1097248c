"""Every lesson of the road in JupyterLab in a real browser, with its exercises solved: Run All, then
move, press and type in its widgets, and read what the page says. Workshops run in nbdev_test
(tests/test_notebooks.py)."""

import json
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
from playwright.sync_api import expect
from road import with_solutions
from shared import SCREENSHOTS
from test_notebooks import ENV, IN_BROWSER, ROOT, is_skipped

SETTINGS = {
    # No question about news; every cell in the page, also those that are scrolled out of sight.
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
# Whatever goes wrong in the kernel passes the message handler here, also what an Output widget or
# Lab's log would swallow.
READY = """async () => {
  await jupyterapp.restored;
  const panel = jupyterapp.shell.currentWidget;
  await panel.context.ready;
  await panel.sessionContext.ready;
  const kernel = panel.sessionContext.session.kernel;
  await kernel.info;
  window.kernelErrors = [];
  kernel.iopubMessage.connect((_, { header, content }) => {
    if (header.msg_type === "error") kernelErrors.push(content.ename + ": " + content.evalue);
    const isTraceback = content.text?.includes("Traceback (most recent call last)");
    if (header.msg_type === "stream" && isTraceback) kernelErrors.push(content.text);
  });
}"""
RUN_ALL = "() => jupyterapp.commands.execute('notebook:run-all-cells')"
CELLS = "() => jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells"

SOURCE = [  # an encoder-decoder with random weights, and the explorer of where it looks
    "import torch\n"
    "from llm_course.checkpoint import load_model\n"
    "from llm_course.encoder_decoder import EncoderDecoder\n"
    "from llm_course.model_config import GPTConfig\n"
    "from llm_course.widgets import CrossAttentionExplorer\n"
    "tokenizer = load_model()[1]\n"
    "torch.manual_seed(1)\n"
    "shape = dict(vocab_size=tokenizer.vocab_size, n_layers=2, n_heads=2, d_model=32)\n"
    "model = EncoderDecoder(GPTConfig(**shape)).eval()\n"
    "for p in model.parameters(): torch.nn.init.normal_(p, std=0.35)",
    "CrossAttentionExplorer(model, tokenizer, 'the cat sat on the mat', 'a cat sat')",
]
HIDDEN = [  # cells that all succeed, each with another error in it
    "import anywidget, ipywidgets, threading\nwith ipywidgets.Output(): 1 / 0",
    "ipywidgets.interact(lambda x: [][x], x=3);",
    "thread = threading.Thread(target=lambda: {}['a thread'])\nthread.start()\nthread.join()",
    "ipywidgets.HTML('<b>ValueError: in a line for errors</b>')",
    "class Broken(anywidget.AnyWidget):\n"
    "    _esm = 'export default { render() { console.error(\"in the console\") } }'\n"
    "Broken()",
]
HIDDEN_ERRORS = (
    "ZeroDivisionError",
    "IndexError",
    "KeyError: 'a thread'",
    "ValueError: in a line for errors",
    "in the console",
)


def working_copy():
    "A digest of every file that opening and running the lessons could change."
    digests = {}
    for folder in ("nbs", "llm_course", "configs"):
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT)
            is_hidden = any(part[0] == "." or part == "__pycache__" for part in name.parts)
            if path.is_file() and not is_hidden:
                digests[str(name)] = sha256(path.read_bytes()).hexdigest()
    return digests


def write_notebook(path, cells):
    "A notebook without outputs."
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = {
        "display_name": "python3",
        "language": "python",
        "name": "python3",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def copy_lessons(folder):
    """The lessons in another folder, with their exercises solved, without outputs and without the
    cells that tests skip, beside what they read."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copy(ROOT / "settings.ini", folder)
    for path in IN_BROWSER:
        cells = with_solutions(nbformat.read(path, 4).cells)
        kept = [cell for cell in cells if cell.cell_type != "code" or not is_skipped(cell)]
        for cell in kept:
            if cell.cell_type == "code":
                cell.outputs = []
                cell.execution_count = None
        write_notebook(folder / path.relative_to(ROOT), kept)
    for name, sources in (("empty", ["1 + 1"]), ("source", SOURCE), ("hidden", HIDDEN)):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        write_notebook(folder / "nbs" / f"{name}.ipynb", cells)


def read_address(server, folder):
    "Where a server that has just been started says that it listens: its address and token."
    end = time.time() + 120
    while True:
        assert server.poll() is None and time.time() < end, log_end()
        found = (folder / "runtime").glob(f"jpserver-{server.pid}.json")
        text = "".join(path.read_text() for path in found)
        if text.rstrip().endswith("}"):  # it is whole
            said = json.loads(text)
            return f"http://127.0.0.1:{said['port']}", said["token"]
        time.sleep(0.1)


def log_end():
    return (SCREENSHOTS / "lab.log").read_text()[-4000:]


@contextmanager
def jupyter_lab(root, folder):
    "`jupyter lab` over `root` with all of its own files in `folder`: its address and token."
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    env = ENV | {variable: str(folder / name) for variable, name in places.items()}
    for name, values in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    command = [
        Path(sys.executable).parent / "jupyter",
        "lab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--ServerApp.root_dir={root}",
        "--LabApp.expose_app_in_browser=True",
    ]
    with open(SCREENSHOTS / "lab.log", "w") as log:
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        with subprocess.Popen(command, env=env, cwd=root, **streams) as server:
            try:
                yield read_address(server, folder)
            finally:
                server.terminate()


class Lab:
    """One server and one browser; the lesson that was opened last stays open until another is asked
    for."""

    def __init__(self, browser, address, token):
        self.browser = browser
        self.address = address
        self.token = token
        self.page = None
        self.path = None
        self.all_ran = False
        self.console = []
        self.usual = set()  # what the console reports in any case
        self.open("nbs/empty.ipynb")
        self.usual = set(self.console)

    def plain(self, text):
        "A message without what differs from one run to the next."
        text = text.replace(self.path, "PATH").replace(self.address, "LAB")
        return re.sub(r"[0-9a-f]{8,}|\d+", "N", text)

    def listen(self, page):
        "Keep what the console reports as an error."

        def on_console(said):
            if said.type == "error":
                place = said.location["url"].split("?")[0]
                self.console.append(self.plain(f"{said.text} {place}"))

        page.on("console", on_console)
        page.on("pageerror", lambda error: self.console.append(self.plain(str(error))))

    def open(self, path):
        "A page on which every cell of the notebook has run."
        if self.path == path:
            return self.page
        self.close()
        self.path = path
        self.console.clear()
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
        late = f"fail(new Error('not done after {seconds} s'))"
        clock = f"new Promise((_, fail) => setTimeout(() => {late}, {1000 * seconds}))"
        return self.page.evaluate(f"() => Promise.race([({code})(), {clock}])")

    def request(self, path, **options):
        "What the server's API answers."
        url = f"{self.address}/api/{path}?token={self.token}"
        with urllib.request.urlopen(urllib.request.Request(url, **options), timeout=60) as answer:
            return answer.read()

    def close(self):
        "Close the page, and end its kernel with it."
        if self.page is None:
            return
        self.page.close()
        for session in json.loads(self.request("sessions")):
            self.request(f"sessions/{session['id']}", method="DELETE")
        self.page = None
        self.path = None


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    before = working_copy()
    root = tmp_path_factory.mktemp("lessons")
    for old in SCREENSHOTS.glob("*"):
        old.unlink(missing_ok=True)
    copy_lessons(root)
    with jupyter_lab(root, tmp_path_factory.mktemp("jupyter")) as (address, token):
        lab = Lab(chromium, address, token)
        yield lab
        lab.close()
    assert working_copy() == before, "running the lessons in a copy has changed the original"


def troubles(lab):
    "Each error in the kernel, on the page, in a widget's line for errors and in the console."
    outputs = lab.page.locator("[data-mime-type='application/vnd.jupyter.error']")
    bold = lab.page.locator(".jupyter-widgets b")
    shown = [*outputs.all_inner_texts(), *bold.all_inner_texts()]
    errors = [text for text in shown if re.search(r"(Error|Exception|Interrupt)\b", text)]
    return [*lab.page.evaluate("kernelErrors"), *errors, *(set(lab.console) - lab.usual)]


def until_other(read, before, seconds=30):
    "What `read()` says as soon as it is not `before`, and has stopped changing."
    end = time.time() + seconds
    last = before
    since = time.time()
    while last == before or time.time() - since < 0.7:
        assert time.time() < end, f"still {before!r}, or still changing: {last!r}"
        time.sleep(0.05)
        now = read()
        if now != last:
            last = now
            since = time.time()
    return last


def slider(widget, name):
    "The handle of the slider with this name: ipywidgets' own has its name beside it."
    named = widget.locator(".widget-slider", has_text=name).get_by_role("slider")
    return named.or_(widget.get_by_role("slider", name=name)).first


def drive_tokenizer(widget, shoot):
    """Type: the tokens are the text's. Move the slider: they go back to bytes and up again. Walk:
    the line names each token."""
    text = "the mat sat on the cat."
    spans = widget.locator(".llm-strip span")
    step = widget.locator(".llm-step")
    before = spans.all_inner_texts()
    widget.locator("textarea").fill(text)
    typed = until_other(spans.all_inner_texts, before)
    assert "".join(typed).replace("·", " ") == text
    assert 1 < len(typed) < len(text)
    counts = rf"^{len(typed)} tokens, {len(text)} bytes, {len(text)} characters"
    expect(widget.get_by_text(re.compile(counts))).to_be_visible()
    shoot("typed")
    slider(widget, "merges").press("Home")
    letters = list(text.replace(" ", "·"))
    assert until_other(spans.all_inner_texts, typed) == letters
    expect(step).to_contain_text("step 0 of ")
    slider(widget, "merges").press("ArrowRight")
    assert len(until_other(spans.all_inner_texts, letters)) < len(text)
    expect(step).to_contain_text(re.compile(r"step 1 of \d+: merge .* → "))
    shoot("first-merge")
    slider(widget, "merges").press("End")
    expect(spans).to_have_text(typed)
    spans.first.press("ArrowRight")
    second = re.compile(rf"^token 2 +{re.escape(typed[1])} +id \d")
    expect(widget.locator(".llm-line")).to_contain_text(second)


def drive_attention(widget, shoot):
    """Type: the words are the text's. Pick a head: the map is another, and its axes are named.
    Walk: another token looks."""
    text = "the mat sat on the cat."
    words = widget.locator(".words span")
    said = widget.locator(".said")
    canvas = widget.locator("canvas")

    def drawn():
        return canvas.evaluate("(canvas) => canvas.toDataURL()")

    before = words.all_inner_texts()
    widget.locator("textarea").fill(text)
    typed = until_other(words.all_inner_texts, before)
    assert "".join(typed).replace("·", " ").endswith(text)
    assert said.inner_text().startswith(f"{typed[-1]} looks at ")
    expect(widget.locator(".map .rows")).to_have_text("the token that looks")
    expect(widget.locator(".map .columns")).to_have_text("where it looks")
    shoot("typed")
    heads = widget.locator(".widget-dropdown", has_text="head").locator("select")
    layers = widget.locator(".widget-dropdown", has_text="layer").locator("select")
    assert heads.input_value() != "mean of heads"  # it opens on a head worth looking at
    layer = "layer 1" if layers.input_value() == "layer 0" else "layer 0"
    for select, other in ((heads, "mean of heads"), (heads, "head 0"), (layers, layer)):
        picture = drawn()
        select.select_option(other)
        until_other(drawn, picture)
    shoot("another-head")
    words.last.press("ArrowLeft")
    expect(said).to_contain_text(re.compile(rf"^{re.escape(typed[-2])} looks at "))


def drive_playground(widget, shoot):
    """Type and move a slider: the bars are others. Generate: the same text each time at temperature
    0. Choose another token for one: the text goes on from there, and Undo brings the old one back.
    """
    prompt = "the mat"
    numbers = widget.locator(".llm-next .num")
    page = widget.locator(".llm-written .page")
    tokens = page.locator("span[role=button]")
    writing = widget.locator(".llm-written .writing")
    temperature = slider(widget, "temperature")

    def press(button):
        widget.get_by_role("button", name=button).click()

    def read_written(before):
        "The text when it is no more `before`, and is whole."
        until_other(page.inner_text, before, 120)
        expect(writing).to_have_count(0)
        return page.inner_text()

    bars = numbers.all_inner_texts()
    widget.locator("textarea").first.fill(prompt)
    bars = until_other(numbers.all_inner_texts, bars)
    shoot("typed")
    written = []
    for key in ("End", "Home", "End", "Home"):
        temperature.press(key)
        bars = until_other(numbers.all_inner_texts, bars)
        before = page.inner_text()
        press("Generate")
        written.append(read_written(before))
    shoot("written")
    for text in written:
        assert prompt in text.replace("·", " ")
        assert len(text) > len(prompt) + 3
    assert written[1] == written[3] and len(set(written)) == 3, written
    tokens.nth(3).click()
    shoot("looked-into")
    last = page.inner_text()
    widget.locator(".llm-next .rows button").nth(1).click()
    read_written(last)
    shoot("another-token")
    press("Undo")
    expect(page).to_have_text(last)


def drive_training(widget, shoot):
    """Start: the steps count up. Pause: they stand. Continue: they count up again. Stop: it is
    over, and says so."""
    line = widget.locator(".llm-training .line")
    state = widget.locator(".llm-training b")
    go = widget.get_by_role("button").first

    def step():
        found = re.search(r"step ([\d,]+) of", line.inner_text())
        return int(found[1].replace(",", ""))

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
    """Type: the rows are the text's tokens. Choose a cell: its ten likeliest tokens are others. Walk
    with the arrow keys: the next cell's."""
    heads = widget.locator(".llm-lens tbody th")
    title = widget.locator(".llm-lens .top p")
    cell = widget.locator(".llm-lens tbody tr").nth(1).locator("td").first
    before = heads.all_inner_texts()
    widget.locator("textarea").fill("the mat sat")
    typed = until_other(heads.all_inner_texts, before)
    assert "".join(typed).replace("·", " ").endswith("the mat sat"), typed
    shoot("typed")
    cell.click()
    expect(title).to_contain_text("after the embedding, at ")
    expect(widget.locator(".llm-lens .top div")).to_have_count(10)
    cell.press("ArrowRight")
    widget.locator(".llm-lens td:focus").press("Enter")
    expect(title).to_contain_text("after layer 0, at ")
    shoot("layer-0")


DRIVE = {
    "TokenizerExplorer": drive_tokenizer,
    "AttentionExplorer": drive_attention,
    "Playground": drive_playground,
    "TrainingDashboard": drive_training,
    "LogitLens": drive_lens,
}


def explorers(cells):
    "The widgets that these cells show, and the number of the cell, by what the output says."
    found = {}
    for i, cell in enumerate(cells):
        for output in cell.get("outputs", ()):
            said = str(output.get("data", {}).get("text/plain"))
            match = re.match(r"(\w+): run this cell in Jupyter", said)
            if match:
                found[match[1]] = i
    return found


COMMITTED = {path: set(explorers(nbformat.read(path, 4).cells)) for path in IN_BROWSER}


def checks():
    "Each notebook as a whole, and then each widget that it shows."
    for path, names in COMMITTED.items():
        yield pytest.param(path, None, id=path.stem)
        for name in sorted(names):
            yield pytest.param(path, name, id=f"{path.stem}-{name}")


def test_every_widget_is_in_a_lesson():
    assert set().union(*COMMITTED.values()) == set(DRIVE)


@pytest.mark.parametrize("path, widget", [*checks()])
def test_in_the_browser(lab, path, widget, request):
    page = lab.open(str(path.relative_to(ROOT)))
    cells = page.evaluate(CELLS)

    def shoot(where, name=""):
        parts = filter(None, (request.node.callspec.id, name))
        where.screenshot(path=SCREENSHOTS / f"{'-'.join(parts)}.png")

    if widget is None:
        shoot(page)
        for cell in cells:
            is_code = cell["cell_type"] == "code" and "".join(cell["source"]).strip()
            assert not is_code or cell["execution_count"], cell["source"]
        assert lab.all_ran
        assert set(explorers(cells)) == COMMITTED[path]
        expect(page.get_by_text("Loading widget...")).to_have_count(0, timeout=30_000)
    else:
        output = page.locator(".jp-Notebook .jp-Cell").nth(explorers(cells)[widget])
        shown = output.locator(".jp-OutputArea-output .widget-vbox").first
        shown.scroll_into_view_if_needed()
        DRIVE[widget](shown, lambda name: shoot(shown, name))
    assert troubles(lab) == []


def test_a_source_is_explored(lab):
    """Type a source, and what is written: the words above and below are the texts'. Pick a head: the
    map is another, and its axes are named. Walk: another token's look is told. Leave the second box
    empty: the model writes."""
    page = lab.open("nbs/source.ipynb")
    widget = page.locator(".jp-OutputArea-output .widget-vbox").first
    source = widget.locator(".source span")
    written = widget.locator(".written span")
    said = widget.locator(".said")
    canvas = widget.locator("canvas")

    def drawn():
        return canvas.evaluate("(canvas) => [canvas.width, canvas.height, canvas.toDataURL()]")

    def shade():
        return source.evaluate_all("(spans) => spans.map((span) => span.style.background)")

    expect(widget.locator(".map .rows")).to_have_text("what was written")
    expect(widget.locator(".map .columns")).to_have_text("where it looked in the source")
    before = source.all_inner_texts()
    widget.locator("textarea").first.fill("the mat sat on the cat.")
    read = until_other(source.all_inner_texts, before)
    assert "".join(read).replace("·", " ") == "the mat sat on the cat."
    before = written.all_inner_texts()
    widget.locator("textarea").last.fill("the cat.")
    told = until_other(written.all_inner_texts, before)
    assert "".join(told).replace("·", " ") == "the cat.<|endoftext|>"
    assert drawn()[0] * len(told) == drawn()[1] * len(read)  # a column each, a row each
    widget.screenshot(path=SCREENSHOTS / "source-typed.png")
    for box, other in (("head", "mean of heads"), ("head", "head 0"), ("layer", "layer 1")):
        picture = drawn()
        select = widget.locator(".widget-dropdown", has_text=box).locator("select")
        select.select_option("layer 0" if select.input_value() == other == "layer 1" else other)
        until_other(drawn, picture)
    shades = shade()
    written.last.press("ArrowLeft")
    expect(said).to_contain_text(re.compile(rf"^{re.escape(told[-2])} was written looking at "))
    assert shade() != shades
    assert written.nth(len(told) - 2).get_attribute("aria-selected") == "true"
    widget.locator("textarea").last.fill("")
    until_other(written.all_inner_texts, told, 60)
    assert troubles(lab) == []


def test_hidden_errors_are_seen(lab):
    page = lab.open("nbs/hidden.ipynb")
    page.get_by_text("ValueError: in a line for errors").last.wait_for()
    assert lab.all_ran
    for cell in page.evaluate(CELLS):
        assert cell["execution_count"]
        assert not [output for output in cell["outputs"] if output["output_type"] == "error"]
    found = "\n".join(troubles(lab))
    for part in HIDDEN_ERRORS:
        assert part in found
