"""Fixtures: a folder to run commands in, a real browser; and which worker runs what."""

import importlib.util
import re
import signal

import pytest
from shared import CHROMIUM, INSTALL, TINY, Shell, browser, give_up

# They need JAX: test_jax.py runs them in a Python that has it.
collect_ignore_glob = [] if importlib.util.find_spec("jax") else ["jax_cases/*"]

# Tests that run in the background inherit a shell's "ignore Ctrl-C", and under nohup "ignore a
# hang-up"; the commands that they start must hear both all the same.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(pluginmanager):
    pluginmanager.import_plugin("notebook_items")


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


@pytest.fixture
def shell(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    return Shell(tmp_path)


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    "A shell in a folder where llm_tokenize has run."
    folder = tmp_path_factory.mktemp("tokenized")
    (folder / "tiny.yaml").write_text(TINY)
    shell = Shell(folder)
    shell.ok("llm_tokenize", "--config", "tiny.yaml")
    return shell


@pytest.fixture(scope="module")
def chromium():
    if not CHROMIUM:
        give_up(INSTALL)
    with browser() as opened:
        yield opened
