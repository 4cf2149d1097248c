"""What tests share: for commands, how to call one in a folder; for pages, a real browser."""

import atexit
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

SCREENSHOTS = Path(__file__).parent / "screenshots"  # git-ignored; continuous integration keeps them
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
INSTALL = (
    "no page was opened in a browser, for there is no Chromium: on Debian, "
    "apt-get install --no-install-recommends chromium fonts-dejavu-core"
)
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TINY = """\
corpus: {source: "tales:400"}
tokenizer: {vocab_size: 600}
model: {n_layers: 2, n_heads: 2, d_model: 32, max_seq_len: 256}
train:
  {max_steps: 40, batch_size: 4, seq_len: 256, warmup_steps: 2, eval_every: 20, eval_batches: 2}
save_every: 5
keep: null
eval: {documents: 10, stories: 4, show: 6}
"""


def run_command(command, folder, env, streams):
    "In a process of its own: what the script of an installed command does."
    for number, (path, mode) in enumerate(zip(streams, ("rb", "wb", "wb"))):
        with open(path, mode) as file:
            os.dup2(file.fileno(), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = command
    commands = importlib.import_module("llm_course.commands")
    try:
        sys.exit(getattr(commands, Path(command[0]).name)())
    finally:
        atexit._run_exitfuncs()


class Shell:
    "Run the installed commands in one folder, as a person would."

    def __init__(self, folder):
        self.folder = Path(folder)
        settings = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        self.env = os.environ | settings

    def command(self, name, *args):
        return [str(Path(sys.executable).parent / name), *map(str, args)]

    def start(self, name, *args):
        return subprocess.Popen(
            self.command(name, *args),
            cwd=self.folder,
            env=self.env,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __call__(self, name, *args, input=""):
        "(exit code, standard output, standard error). It begins with torch loaded, which saves seconds."
        from notebook_items import ENV, Session

        streams = [self.folder / f".{name}-{stream}" for stream in ("in", "out", "err")]
        streams[0].write_bytes(input if isinstance(input, bytes) else input.encode())
        said = (self.command(name, *args), self.folder, self.env, streams)
        process = Session.context.Process(target=run_command, args=said)
        with mock.patch.dict(os.environ, ENV):
            process.start()
        process.join(300)
        process.kill()  # if it did not end
        process.join()
        out, err = [path.read_text(encoding="utf-8") for path in streams[1:]]
        for path in streams:
            path.unlink()
        return process.exitcode, out, err

    def ok(self, name, *args, **kwargs):
        code, out, err = self(name, *args, **kwargs)
        assert code == 0, out + err
        return out

    def refused(self, name, *args, **kwargs):
        "The one sentence with which a command refuses its input."
        code, out, err = self(name, *args, **kwargs)
        told = (code, out, err)
        assert code == 2 and "Traceback" not in err and err.count("\n") == 1, told
        return err


def same(a, b):
    "Whether two states agree to the bit, tensors inside of them too."
    import torch  # not every test needs it

    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def steps(run):
    return sorted(path.name for path in run.glob("step-*"))


def losses(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def wait_for(condition, process, seconds=120):
    "Wait until `condition()` holds, while the process lives."
    end = time.time() + seconds
    while not condition():
        assert process.poll() is None and time.time() < end, process.communicate()
        time.sleep(0.0005)


def name_run(shell, name):
    "The folder of another run over the same data."
    for kind in ("tokenizer", "processed"):
        target = shell.folder / "data" / kind / name
        if not target.exists():
            shutil.copytree(shell.folder / "data" / kind / "tales", target)
    return shell.folder / "data" / "runs" / name


@contextmanager
def browser():
    "Debian's Chromium, or Chrome, driven by Playwright, whose event loop then runs here."
    from playwright.sync_api import sync_playwright

    SCREENSHOTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield opened
        opened.close()


def give_up(reason):
    "Skip a test that cannot run here; in continuous integration it fails."
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


def jax_python():
    "The Python that has JAX: Jupyter's kernel `jax` runs in it."
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        return KernelSpecManager().get_kernel_spec("jax").argv[0]
    except NoSuchKernel:
        give_up("there is no Python with JAX: make jax")
