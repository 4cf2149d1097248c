"""Runs nbdev_test on one notebook after another, each in a process of its own that is a copy of this
one: what takes two seconds to load, nbdev and torch above all, is loaded once.

As a program it reads a line of JSON for each notebook: the folder to run in, the notebook, and the
file for what is said. It answers each with the exit code."""

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys

LIBRARIES = ("nbdev.test", "torch", "matplotlib.pyplot", "pytest", "hypothesis")


class Runs:
    "This program at work, in a process that is started again after a notebook that did not end."

    def __init__(self, env):
        self.env = env
        self.start()

    def start(self):
        command = [sys.executable, __file__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=self.env, start_new_session=True, **pipes)

    def __call__(self, folder, notebook, log, seconds):
        "The exit code, and what was said."
        order = [str(folder), str(notebook), str(log)]
        print(json.dumps(order), file=self.process.stdin, flush=True)
        answered, _, _ = select.select([self.process.stdout], [], [], seconds)
        if not answered:
            self.close()
            self.start()
            return f"none after {seconds} s", log.read_text(encoding="utf-8")
        return int(self.process.stdout.readline()), log.read_text(encoding="utf-8")

    def close(self):
        "End it, and a notebook that runs."
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def run(folder, notebook, log):
    "What the installed nbdev_test does in this folder."
    from nbdev.test import nbdev_test

    nothing = os.open(os.devnull, os.O_RDONLY)
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream, instead in enumerate((nothing, said, said)):
        os.dup2(instead, stream)
    os.chdir(folder)
    nbdev_test(path=notebook, n_workers=0, do_print=True)


def main():
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()
    for line in sys.stdin:
        copy = os.fork()
        if copy == 0:
            return run(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
