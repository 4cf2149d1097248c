"""The command on two processes: it learns what one process learns, and speaks with one voice; what
cannot be done together is refused by one sentence."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from shared import Shell, losses, steps, wait_for

from llm_course import cli
from llm_course.checkpoint import load_model

TINY = """\
corpus: {source: "tales:400"}
tokenizer: {vocab_size: 600}
model: {n_layers: 2, n_heads: 2, d_model: 32, max_seq_len: 128}
train:
  {max_steps: 12, batch_size: 8, seq_len: 128, grad_accum_steps: 2, warmup_steps: 2, device: cpu,
   eval_every: 6, eval_batches: 2}
track: {sample_every: 6}
sample: {max_new_tokens: 16}
save_every: 5
"""
BIN = Path(sys.executable).parent
TWO = (str(BIN / "torchrun"), "--standalone", "--nproc-per-node=2")
MODULE = ("-m", "llm_course.cli", "train")
SCRIPT = ("--no-python", str(BIN / "llm_train"))
COMMANDS = {
    "ddp": (*TWO, *MODULE, "parallel.kind=ddp"),
    "fsdp": (*TWO, *SCRIPT, "parallel.kind=fsdp", "parallel.checkpoint_activations=true"),
}


class Jobs:
    "Commands of one folder, each with a run of its own name."

    def __init__(self, folder):
        self.folder = folder
        self.shell = Shell(folder)

    def begin(self, name, *words):
        self.name(name)
        pipes = dict(text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        command = [*words, "--config=tiny.yaml", f"name={name}"]
        return subprocess.Popen(command, cwd=self.folder, env=self.shell.env, **pipes)

    def name(self, name):
        "Give the text another name, for a run of its own."
        for kind in ("tokenizer", "processed"):
            os.symlink("tales", self.folder / "data" / kind / name)

    def run(self, name):
        return self.folder / "data" / "runs" / name


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "tiny.yaml").write_text(TINY)
    home = Path.cwd()
    os.chdir(folder)
    assert cli.llm_tokenize(["--config=tiny.yaml"]) == 0
    yield Jobs(folder)
    os.chdir(home)


@pytest.fixture(scope="module")
def said(jobs):
    "What each command said: exit code, standard output, standard error."
    begun = {name: jobs.begin(name, *words) for name, words in COMMANDS.items()}
    told = {}
    jobs.name("one")
    with redirect_stdout(StringIO()) as out:
        code = cli.llm_train(["--config=tiny.yaml", "name=one"])
    told["one"] = (code, out.getvalue(), "")
    for name, process in begun.items():
        out, err = process.communicate(timeout=200)
        told[name] = (process.returncode, out, err)
    return told


def records(run, name):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line).get(name) for line in lines]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_learns(jobs, said, kind):
    assert said[kind][0] == 0, said[kind]
    alone = jobs.run("one")
    together = jobs.run(kind)
    assert losses(together) == pytest.approx(losses(alone), rel=0, abs=1e-5)
    assert len(losses(together)) == 12
    for name in ("tokens", "sample", "lr"):
        assert records(together, name) == records(alone, name)
    measured = [loss for loss in records(alone, "valid_loss") if loss]
    again = [loss for loss in records(together, "valid_loss") if loss]
    assert again == pytest.approx(measured, rel=0, abs=1e-5)
    assert steps(together) == steps(alone)
    assert load_model(together)[0].config == load_model(alone)[0].config


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_rank_0_alone_speaks(said, kind):
    kinds = ("data", "model", "step")
    alone = [line for line in said["one"][1].splitlines() if line.startswith(kinds)]
    _, out, err = said[kind]
    assert [line for line in out.splitlines() if line.startswith(kinds)] == alone
    assert len(out.splitlines()) == len(said["one"][1].splitlines()) + 1
    assert f"processes   2 by parallel.kind={kind}\n" in out
    assert err == ""


@pytest.mark.slow
def test_processes_that_would_train_alone_are_refused_once(jobs):
    process = jobs.begin("none", *TWO, *MODULE)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1 and out == ""
    spoken = [line for line in err.splitlines() if line.startswith("llm_train: ")]
    assert spoken == [
        "llm_train: torchrun started 2 processes, and parallel.kind is none: give parallel.kind=ddp "
        "or parallel.kind=fsdp."
    ]
    assert not jobs.run("none").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_processes_after_the_same_step(jobs, number):
    name = f"stopped{number}"
    process = jobs.begin(name, *TWO, *MODULE, "parallel.kind=fsdp", "train.max_steps=2000")
    wait_for(lambda: steps(jobs.run(name)), process)
    time.sleep(0.5)
    process.send_signal(number)
    out, _ = process.communicate(timeout=100)
    *_, last = out.splitlines()
    assert last.startswith("stopped; to go on: torchrun --nnodes=1 --nproc-per-node=2 --no-python")
    assert steps(jobs.run(name))[-1] == f"step-{len(losses(jobs.run(name))):07d}"
