"""Each heading of a notebook is a test: `pytest "nbs/08d_filters.ipynb::Top-p"` runs the code cells
that stand above it, and then its own. What ran once is not run again, so all headings of a notebook
together run each cell once.

A notebook runs in a process of its own, on one worker of xdist. It is forked from one in which torch
and what else takes seconds to load is loaded already."""

import contextlib
import importlib.util
import multiprocessing
import os
import re
import signal
import sys
from collections import Counter
from configparser import ConfigParser
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import nbformat
import pytest
from covered_cells import InModule
from road import ROAD, with_solutions

ROOT = Path(__file__).resolve().parent.parent
# One thread a process, since the tests run in several; no network and no GPU, as on a laptop.
ENV = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "MPLBACKEND": "",
    "IN_TEST": "1",
}
COVERAGE = "COVERAGE_FOLDER" in os.environ  # make coverage
LIBRARIES = ["execnb.shell", "torch", "matplotlib.pyplot", "pytest", "hypothesis"]

# Run elsewhere by default: the road in JupyterLab, with its exercises solved; these, of several
# processes each, by test_planner.py and test_clinic.py.
HELD_ELSEWHERE = {"13i_footprint", "13j_probes", "13n_capacity"} | {path.stem for path in ROAD}

# Tests that run in the background inherit a shell's "ignore Ctrl-C", and under nohup "ignore a
# hang-up"; the commands and cells that they start must hear both all the same.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Cell(NamedTuple):
    "A code cell that runs."
    number: int  # in its notebook, counted from 1
    source: str
    id: str
    words: list  # that stand below it


def words(outputs):
    "What a cell printed, without numbers and addresses, which differ from run to run."
    texts = [output.get("data", {}).get("text/plain", output.get("text", "")) for output in outputs]
    told = "".join("".join(text) for text in texts)
    return re.sub(r"0x[0-9a-f]+|[^a-zA-Z]+", " ", told).split()


def skipped_flags():
    "The directives of cells that do not run, as settings.ini names them."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return set(config["DEFAULT"]["tst_flags"].split())


def directives(source):
    "The `#|` lines that a code cell begins with, as (name, value)."
    head = re.match(r"(?:\s*#\|.*\n?)*", source).group()
    return re.findall(r"^#\|\s*([\w-]+)\s*:?\s*(.*)$", head, re.M)


def is_skipped(source, flags):
    "Whether a code cell is left out, as nbdev_test does."
    marks = directives(source)
    never = ("eval", "false") in [(name, value.strip()) for name, value in marks]
    return never or not source.strip() or any(name in flags for name, _ in marks)


def heading_name(line):
    "A heading as a name: `## Rules about *tokens* -> Rules-about-tokens`."
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)|[#*`_$\\:\[\]]+", r"\1", line).split()
    return "-".join(words)


def sections(cells, flags):
    "The cells that run under each heading, by its name."
    found = {}
    seen = Counter()
    name = "top"
    for number, cell in enumerate(cells, 1):
        heading = re.search(r"^#+ .*$", cell.source, re.M)
        if cell.cell_type == "markdown" and heading:
            name = heading_name(heading.group())
            seen[name] += 1
            name += f"-{seen[name]}" if seen[name] > 1 else ""
        if cell.cell_type == "code" and not is_skipped(cell.source, flags):
            found.setdefault(name, []).append(
                Cell(number, cell.source, cell.id, words(cell.outputs))
            )
    return found


def can_run(notebook):
    "Whether this Python has what a notebook's kernel has: `jax` is a kernel with JAX (make jax)."
    kernel = notebook.metadata.get("kernelspec", {}).get("name", "python3")
    return kernel == "python3" or importlib.util.find_spec(kernel) is not None


def run_cells(path, log, pipe):
    "In a process of its own: run the cells that come through the pipe; the error of each, and its words."
    from execnb.shell import CaptureShell, format_exc

    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream, instead in enumerate((nothing, said, said)):
        os.dup2(instead, stream)
    sys.path.insert(0, str(ROOT))
    os.chdir(path.parent)
    shell = CaptureShell(path)
    module = InModule(shell, path) if COVERAGE else None
    pipe.send("")
    while cell := pipe.recv():
        if module:
            module.begin(cell)
        outputs = shell.run(cell.source)
        error = "".join(format_exc(shell.exc)) if shell.exc else ""
        pipe.send((error, words(outputs)))


class Failed(Exception):
    "A cell of a notebook failed."


class Session:
    "A notebook that runs, cell after cell."

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    now = None  # the one of this process

    def __init__(self, path, folder, seconds, fresh):
        if Session.now is not None:
            Session.now.close()
        Session.now = self
        self.path = path
        self.seconds = seconds  # that one cell may take
        self.fresh = fresh  # whether what stands below a cell must be what it prints
        self.log = folder / f"{path.stem}.txt"
        self.n_done = 0
        self.failed = None
        self.pipe, theirs = self.context.Pipe()
        self.process = self.context.Process(target=run_cells, args=(path, self.log, theirs))
        with mock.patch.dict(os.environ, ENV):
            self.process.start()
        theirs.close()
        self._wait_until_ready()

    def _wait_until_ready(self):
        try:
            self.pipe.recv()
        except EOFError:
            self.failed = 0
            said = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise Failed(f"Its process did not start.\n{said}") from None

    def run(self, cells):
        "Run those of the cells, all from the first on, that did not run yet. Failed where one does."
        if self.failed is not None:
            raise Failed(f"It was not run, since cell {self.failed} failed.")
        stale = []
        for cell in cells[self.n_done :]:
            self.n_done += 1
            error, printed = self._run(cell)
            if error:
                self.failed = cell.number
                said = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise Failed(f"Cell {cell.number}:\n\n{cell.source}\n\n{error}\n{said}")
            if self.fresh and printed != cell.words:
                told = f"Cell {cell.number} prints: {' '.join(printed)}"
                stale.append(f"{told}\nBelow it stands: {' '.join(cell.words)}")
        if stale:
            raise Failed("\n".join(stale))

    def _run(self, cell):
        "What went wrong in a cell, or nothing; and its words."
        try:
            self.pipe.send(cell)
            if self.pipe.poll(self.seconds):
                return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(10)
            return f"Its process ended in the midst of it, with {self.process.exitcode}.", []
        return f"It did not end within {self.seconds} s.", []

    def close(self):
        "End the notebook, and whatever it has started."
        Session.now = None
        if self.failed is None:
            self.pipe.send(None)
            self.process.join(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        self.pipe.close()


class Heading(pytest.Item):
    "The cells under a heading of a notebook."

    def __init__(self, *, above, **kwargs):
        super().__init__(**kwargs)
        self.above = above  # the cells down to the last one under it

    def runtest(self):
        session = Session.now
        if session is None or session.path != self.path or session.n_done > len(self.above):
            folder = self.config._tmp_path_factory.mktemp("notebook")
            option = self.config.getoption
            session = Session(self.path, folder, option("--cell-seconds"), option("--fresh"))
        session.run(self.above)

    def repr_failure(self, excinfo):
        if isinstance(excinfo.value, Failed):
            return f"{self.path.name}, under {self.name}. {excinfo.value}"
        return super().repr_failure(excinfo)

    def reportinfo(self):
        return self.path, None, f"{self.path.stem}: {self.name}"


class Notebook(pytest.File):
    "The headings of a notebook under which something runs."

    def collect(self):
        notebook = nbformat.read(self.path, 4)
        cells = notebook.cells
        if self.path in ROAD and not self.config.getoption("--fresh"):
            cells = with_solutions(cells)
        if not can_run(notebook):
            return
        flags = skipped_flags() - set(self.config.getoption("--cells").split())
        is_named = any(self.path.name in argument for argument in self.config.args)
        above = []
        for name, found in sections(cells, flags).items():
            above = above + found
            item = Heading.from_parent(self, name=name, above=above)
            if self.path.stem in HELD_ELSEWHERE and not is_named and not COVERAGE:
                item.add_marker(pytest.mark.slow)
            yield item


def pytest_addoption(parser):
    told = "run these cells of the notebooks too, such as --cells 'slow gpu'"
    parser.addoption("--cells", default="", metavar="FLAGS", help=told)
    told = "how long a cell of a notebook may take"
    parser.addoption("--cell-seconds", type=float, default=300.0, help=told)
    told = "fail where a cell prints other words than those that stand below it"
    parser.addoption("--fresh", action="store_true", help=told)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; left out unless -m asks for it")
    if not config.option.markexpr:
        config.option.markexpr = "not slow"


def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".ipynb" and ".ipynb_checkpoints" not in file_path.parts:
        return Notebook.from_parent(parent, path=file_path)
    return None


def pytest_unconfigure():
    if Session.now is not None:
        Session.now.close()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One worker runs all that needs a browser, so that one server and one browser are started. One
    runs a notebook, and a file of tests that share a server or several processes. `--dist loadgroup`
    does nothing in pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class OneBrowser(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            shares = r"test_(chat_page|clinic|parallel|planner|processes|torchrun)\.py"
            if file := re.search(shares, nodeid):
                return file.group()
            if ".ipynb::" in nodeid:
                return nodeid.split("::")[0]
            return "browser" if re.search(r"test_(browser|site)\.py", nodeid) else nodeid

    return OneBrowser(config, log)
