"""Signals at any moment, and output that cannot be written: nothing that was trained is lost, and
nobody is shown a traceback."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shared import losses, name_run, steps

TRAIN = ("--config", "tiny.yaml", "save_every=500", "train.eval_every=10", "keep=2")
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENTRY = "import sys; from llm_course.commands import {0}; print('', flush=True); sys.exit({0}())"


def entry(name, *words):
    "A command by its entry point, which first prints an empty line: from there on signals are heard."
    return [sys.executable, "-c", ENTRY.format(name), *words]


def begin(shell, command, **how):
    "Start a command as the leader of a process group, as a shell in a terminal does."
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | how
    return subprocess.Popen(
        command, cwd=shell.folder, env=shell.env, start_new_session=True, **how
    )


def stop(process, number, delay, twice=False):
    "Signal a command's whole group after a while; (exit code, errors)."
    process.stdout.readline()
    time.sleep(delay)
    for _ in range(1 + twice):
        os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=120)
    code = process.returncode
    return (code if code >= 0 else 128 - code), errors  # as a shell tells it


@pytest.fixture(scope="module")
def straight(tokenized):
    "An undisturbed run, to compare others with, and the seconds that it took."
    run = name_run(tokenized, "undisturbed")
    start = time.monotonic()
    process = begin(tokenized, entry("llm_train", *TRAIN, "name=undisturbed"))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return run, time.monotonic() - start


def stopped_and_gone_on(shell, straight, name, rng, stops):
    "Stop a run again and again at random moments, then let it end. Returns how many had steps."
    run = name_run(shell, name)
    undisturbed, seconds = straight
    saves = 0
    for _ in range(stops):
        resume = ["--resume"] if steps(run) else []
        process = begin(shell, entry("llm_train", *TRAIN, f"name={name}", *resume))
        number = rng.choice(STOPS)
        code, errors = stop(process, number, rng.uniform(0, seconds), twice=rng.random() < 0.5)
        assert "Traceback" not in errors, errors
        recorded = (run / "metrics.jsonl").is_file() and len(losses(run))
        if recorded:
            assert steps(run)[-1] == f"step-{recorded:07d}", (code, errors)
            saves += code != 0
        if code == 0:  # it had ended before
            break
        assert code == 128 + number, errors
        assert recorded or errors == "llm_train: interrupted\n", errors
    if code != 0:
        resume = ["--resume"] if steps(run) else []
        process = begin(shell, entry("llm_train", *TRAIN, f"name={name}", *resume))
        process.communicate(timeout=300)
        assert process.returncode == 0
    assert losses(run) == losses(undisturbed)
    return saves


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_stop_is_always_a_save(tokenized, straight, seed):
    stopped_and_gone_on(tokenized, straight, f"moments{seed}", random.Random(seed), 5)


WORKING = """
import sys
import time
from llm_course.terminal import interruptible, stop_code
from llm_course.workers import map_in_processes
try:
    with interruptible():
        print("", flush=True)
        list(map_in_processes(time.sleep, [600] * 4, 2))
except KeyboardInterrupt as error:
    sys.exit(stop_code(error))
"""


@pytest.mark.parametrize("delay", [0, 0.02, 0.05, 0.2])
def test_a_group_is_stopped_while_workers_start(shell, delay):
    "Ctrl-C goes to all processes of a terminal; workers neither hear it nor say a word."
    process = begin(shell, [sys.executable, "-c", WORKING])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("the children of a process are read from /proc")
    process.stdout.readline()
    while not children.read_text():
        assert process.poll() is None, process.communicate()
    workers = children.read_text().split()
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end, f"a stopped command left {workers} behind"


@pytest.mark.slow
def test_a_result_that_cannot_be_written_is_an_error(tokenized):
    quiet = ENTRY.replace("print('', flush=True); ", "").format("llm_generate")
    words = [sys.executable, "-c", quiet, "sample.max_new_tokens=9"]
    for output, code, said in (
        (">/dev/full", 2, "the output could not be written"),
        ("| head -c 1", 0, ""),
        ("2>&-", 0, ""),
    ):
        shell = ["bash", "-c", f'set -o pipefail; "$@" {output}', "bash"]
        process = begin(tokenized, [*shell, *words])
        _, errors = process.communicate(timeout=120)
        assert process.returncode == code and said in errors, errors
        assert errors.count("\n") == bool(said) and "Traceback" not in errors
