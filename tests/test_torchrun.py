"""The command under torchrun: ranks that are killed at any moment, again and again, make the run that
nobody disturbed, to the bit; nothing stays behind."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import parallel_runs as runs
import pytest
import torch
from shared import TINY, losses, same, steps, wait_for
from torch.distributed import TCPStore
from torch.distributed import checkpoint as dcp

from llm_course import cli
from llm_course.checkpoint import load_checkpoint, load_model
from llm_course.ranks import Ranks
from llm_course.sharded_state import stored_tensors
from llm_course.world import World

TRAIN = (
    "--config=tiny.yaml",
    "parallel.kind=ddp",
    "model.dropout=0.1",  # random states count, too
    "train.max_steps=16",
    "train.eval_every=8",
    "track.sample_every=0",
    "save_every=1",
)
LOST = "llm_train: another process of this training has ended"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A folder in which llm_tokenize has run."
    home = Path.cwd()
    folder = tmp_path_factory.mktemp("project")
    os.chdir(folder)
    Path("tiny.yaml").write_text(TINY)
    assert cli.llm_tokenize(["--config=tiny.yaml"]) == 0
    yield folder
    os.chdir(home)


class Job:
    "A command under torchrun, in the session of its own that a terminal would give it."

    def __init__(self, project, name, *settings, ranks=2, restarts=0):
        for kind in ("tokenizer", "processed"):
            with suppress(FileExistsError):
                os.symlink("tales", project / "data" / kind / name)
        self.run = project / "data" / "runs" / name
        where = (f"--nproc-per-node={ranks}", f"--max-restarts={restarts}", "--standalone")
        launch = (sys.executable, "-m", "torch.distributed.run", *where)
        settings = (*TRAIN, f"name={name}", *settings)
        self.seen = set()  # all its ranks, by their process ids
        self.errors = open(project / f"{name}.err", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*launch, "-m", "llm_course.cli", "train", *settings],
            cwd=project,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
        )

    def ranks(self):
        "Process ids of the ranks that live, in their order."
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids = [pid for pid in map(int, path.read_text().split()) if is_rank(pid)]
        self.seen.update(pids)
        return pids

    def new_ranks(self, n=2):
        "Wait until ranks run that were not seen before."
        before = set(self.seen)
        wait_for(lambda: len(set(self.ranks()) - before) == n, self.process)
        return sorted(set(self.ranks()) - before)

    def end(self, seconds=60):
        "Wait until it has ended: exit code, and what it said. Nothing of it lives on."
        code = self.process.wait(seconds)
        assert not any(map(is_rank, self.seen)), "a rank outlived torchrun"
        self.errors.seek(0)
        return code, self.errors.read()


def is_rank(pid):
    "Whether a process of a job lives."
    with suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and b"llm_course.cli" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def state_of(checkpoint):
    "All that a run can go on with: weights' bytes, each rank's state, the optimizer's tensors."
    folder = checkpoint / "training"
    ranks = {path.name: torch.load(path) for path in folder.glob("rank-*.pt")}
    found = stored_tensors(folder)
    tensors = {name: torch.zeros(x.size, dtype=x.properties.dtype) for name, x in found.items()}
    dcp.load(tensors, checkpoint_id=folder, no_dist=True)
    return {"weights": (checkpoint / "model.safetensors").read_bytes()} | ranks | tensors


def check(run, straight):
    "Whatever bears the name of a checkpoint is what the undisturbed run saved there."
    for name in steps(run):
        assert same(state_of(run / name), state_of(straight / name)), name


@pytest.fixture(scope="module")
def pool():
    "Four processes that stay, started at the first call."
    with Ranks(4, timeout=120) as ranks:
        yield ranks


def in_job(pool, function, meeting, *args):
    "Call a function on two ranks of a pool, for which this process keeps a store as torchrun does."
    store = TCPStore("127.0.0.1", 0, is_master=True)
    return pool.run(function, 2, store.port, meeting, *args)[:2]


def train_in(pool, project, name):
    "The same training on two ranks of a pool, which costs no start. The run."
    for kind in ("tokenizer", "processed"):
        with suppress(FileExistsError):
            os.symlink("tales", project / "data" / kind / name)
    words = [*TRAIN, f"name={name}", "--resume", "parallel.timeout=60"]
    answers = in_job(pool, runs.command, project / f"meeting-{name}", project, words)
    assert [code for code, _ in answers] == [0, 0], answers
    return project / "data" / "runs" / name


@pytest.fixture(scope="module")
def straight(project, pool):
    "An undisturbed run that keeps every step."
    run = train_in(pool, project, "straight")
    assert steps(run)[-1] == "step-0000016" and len(losses(run)) == 16
    return run


def last_step(run):
    return int((steps(run) or ["step-0"])[-1].removeprefix("step-"))


def is_saving(run):
    return run.is_dir() and any(name.startswith(".tmp-") for name in os.listdir(run))


def kill_one(job, rng, moment):
    "kill -9 one of the ranks: while they start, between two saves or in one. Whether it met a save."
    pids = job.new_ranks()
    if moment == "start":
        time.sleep(rng.uniform(0, 2))
    else:
        goal = last_step(job.run) + rng.randint(1, 3)
        wait_for(lambda: last_step(job.run) >= goal, job.process)
    if moment == "save":
        wait_for(lambda: is_saving(job.run), job.process)
    time.sleep(rng.choice([0, 0.001, 0.003, rng.uniform(0, 0.02)]))
    met = is_saving(job.run)
    os.kill(rng.choice(pids), signal.SIGKILL)
    return met


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("seed", SEEDS)
def test_killed_again_and_again(project, pool, straight, seed):
    "Three times torchrun starts the ranks again; the fourth kill ends the job."
    rng = random.Random(seed)
    job = Job(project, f"killed{seed}", "--resume", restarts=3)
    moments = ["start", "save", "save", "step"]
    rng.shuffle(moments)
    met = [kill_one(job, rng, moment) for moment in moments]
    code, errors = job.end()
    assert code == 1 and LOST in errors, errors
    assert any(met), "no kill met a save"
    check(job.run, straight)
    train_in(pool, project, job.run.name)
    check(job.run, straight)
    assert losses(job.run) == losses(straight) and len(steps(job.run)) == 16
    assert not is_saving(job.run)


def test_a_model_may_outlive_its_group(pool, tmp_path):
    "If DDP held the group last, torch would keep Python's lock from a thread that it waits for."
    in_job(pool, runs.part, tmp_path / "meeting")


@pytest.mark.slow
def test_a_command_that_cannot_be_said_twice_is_refused(project):
    job = Job(project, "twice", restarts=1)
    code, errors = job.end()
    assert code == 1 and "--max-restarts=1 starts this command again after a failure" in errors
    assert not job.run.exists()


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_job(project):
    "The other one waits for it as long as parallel.timeout says; then torchrun ends both."
    job = Job(project, "hangs", "parallel.timeout=5")
    pids = job.new_ranks()
    wait_for(lambda: last_step(job.run) >= 2, job.process)
    os.kill(pids[1], signal.SIGSTOP)
    code, errors = job.end(seconds=90)
    assert code == 1 and f"{LOST}, or did not answer" in errors, errors


@pytest.mark.slow
def test_ranks_stop_where_torchrun_is_killed(project):
    job = Job(project, "orphans", "train.max_steps=100000")
    job.new_ranks()
    wait_for(lambda: last_step(job.run) >= 2, job.process)
    job.process.kill()
    end = time.monotonic() + 60
    while any(map(is_rank, job.seen)):
        assert time.monotonic() < end, "the ranks train on, and nobody would end them"
        time.sleep(0.1)
    assert len(losses(job.run)) == last_step(job.run)  # stopped as by a signal


@pytest.fixture
def on(pool, tmp_path):
    "Call a function on some of the pool's ranks; what it returned on each of them."
    numbers = count()

    def on(size, function, *args):
        meeting = tmp_path / f"meeting{next(numbers)}"
        return pool.run(runs.on_ranks, size, meeting, function, *args)[:size]

    return on


def same_tensors(a, b):
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


def test_another_number_of_ranks_reads_the_rest(on, tmp_path):
    "1 → 2 → 4 → 1 ranks: each document's five targets are read once, with the losses of one."
    straight, _ = runs.journey(World(), tmp_path / "straight", "none", 9)
    run = tmp_path / "run"
    losses = []
    read = []
    for size, kind, until in ((1, "none", 2), (2, "ddp", 5), (4, "fsdp", 7), (1, "none", 9)):
        if size == 1:
            answers = [runs.journey(World(), run, kind, until)]
        else:
            answers = on(size, runs.journey, run, kind, until)
        losses += answers[0][0]
        read += [targets for _, targets in answers]
    assert torch.bincount(torch.cat(read)).tolist() == [5] * runs.N_DOCUMENTS
    assert losses == pytest.approx(straight, abs=1e-5) and len(losses) == 9
    for name in steps(run):
        load_model(run / name)


def test_every_number_of_ranks_and_kind_loads_the_same_bits(on, tmp_path):
    alone = tmp_path / "alone"
    runs.journey(World(), alone, "none", 3)
    first, chance = runs.contents(World(), alone / "step-0000003", "none")
    came = alone / "step-0000003"
    for size, kind in ((4, "fsdp"), (2, "fsdp"), (2, "ddp"), (4, "ddp"), (4, "fsdp"), (1, "none")):
        other = tmp_path / f"{came.parent.name}-{size}{kind}"
        if size == 1:
            answers = [runs.contents(World(), came, kind, other)]
        else:
            answers = on(size, runs.contents, came, kind, other)
        assert all(same_tensors(tensors, first) for tensors, _ in answers), (size, kind)
        assert answers[0][1] == chance
        assert len({number for _, number in answers}) == size, "two ranks draw the same"
        came = other / came.name
    assert (came / "training" / "state.pt").exists()
    assert load_checkpoint(came, *runs.make_parts(World(), "none", 7)) == 3


def test_where_one_rank_fails_all_raise(on, tmp_path):
    run = tmp_path / "run"
    on(2, runs.journey, run, "fsdp", 1)
    names = sorted(path.name for path in run.iterdir())
    for rank in (0, 1):
        said = on(2, runs.refusal, run, rank, run)
        assert all(text.startswith("OSError") and "disk full" in text for text in said), said
        assert sorted(path.name for path in run.iterdir()) == names
    part = run / names[-1] / "training" / "__1_0.distcp"
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    said = on(2, runs.refusal, run, None, run)
    assert all("__1_0.distcp is damaged" in text for text in said), said
    assert said[0].startswith("ValueError") and said[1].startswith("OSError: rank 0 failed")
