"""Fixtures: a folder to run commands in, a real browser."""

import importlib.util

import pytest
from shared import CHROMIUM, INSTALL, TINY, Shell, browser, give_up

# They need JAX: test_jax.py runs them in a Python that has it.
collect_ignore_glob = [] if importlib.util.find_spec("jax") else ["jax_cases/*"]


def pytest_addoption(pluginmanager):
    pluginmanager.import_plugin("notebook_items")


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
