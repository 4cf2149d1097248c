"A run that is killed again and again, or runs out of disk, is the same run to the bit."

import json
import os
import random
import shutil
import subprocess
import time

import pytest
import torch
from shared import losses, name_run, same, steps, wait_for

from llm_course.checkpoint import load_model, resolve_checkpoint
from llm_course.run_folder import read_config, waiting_run

TRAIN = (
    "llm_train",
    "--config",
    "tiny.yaml",
    "save_every=1",
    "train.eval_every=10",
    "model.dropout=0.1",  # random states count, too
)


@pytest.fixture(scope="module")
def straight(tokenized):
    "An undisturbed run that keeps every step, to compare others with."
    run = name_run(tokenized, "straight")
    tokenized.ok(*TRAIN, "name=straight")
    return run


def state_of(folder):
    return torch.load(folder / "training" / "state.pt", weights_only=True)


def weights_of(folder):
    return load_model(folder)[0].state_dict()


def check(run, straight):
    "Whatever bears the name of a checkpoint loads, and is what the undisturbed run saved there."
    for name in steps(run):
        assert same(state_of(run / name), state_of(straight / name)), name
        assert same(weights_of(run / name), weights_of(straight / name)), name
    if steps(run):
        assert resolve_checkpoint(run).name in steps(run)[-2:]


def validation(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line).get("valid_loss") for line in lines]


def being_saved(run):
    return run.is_dir() and any(name.startswith(".tmp-") for name in os.listdir(run))


def last_step(run):
    return int((steps(run) or ["step-0"])[-1].removeprefix("step-"))


def resume(run):
    return ["--resume"] if steps(run) else []


def kill_once(shell, run, rng):
    "Start or resume the run, and kill -9 it some steps later. Returns whether it was saving."
    goal = min(last_step(run) + rng.randint(0, 3), 37)
    process = shell.start(*TRAIN, f"name={run.name}", "keep=2", *resume(run))
    try:
        wait_for(lambda: last_step(run) >= goal and run.is_dir(), process)
        if rng.random() < 0.7:
            wait_for(lambda: being_saved(run), process)
        time.sleep(rng.choice([0, 0, 0.001, 0.005, rng.uniform(0, 0.05)]))
    finally:
        process.kill()
        process.communicate()
    return being_saved(run)


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_again_and_again(tokenized, straight, kills):
    run = name_run(tokenized, f"killed{kills}")
    rng = random.Random(kills)
    inside = 0
    for _ in range(kills):
        inside += kill_once(tokenized, run, rng)
        check(run, straight)
    assert inside, "no kill met a save"
    tokenized.ok(*TRAIN, f"name={run.name}", "keep=2", *resume(run))
    check(run, straight)
    assert losses(run) == losses(straight) and len(losses(run)) == 40
    assert validation(run) == validation(straight)
    assert sum(loss is not None for loss in validation(run)) == 4
    assert steps(run)[-1] == "step-0000040" and len(steps(run)) <= 3 and not being_saved(run)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0, 0.02, 0.1, 0.3])
def test_a_run_is_read_at_every_moment_of_its_replacement(tokenized, straight, delay):
    run = name_run(tokenized, f"replaced{delay}")
    shutil.copytree(straight, run)
    again = (*TRAIN, f"name={run.name}", "--fresh", "train.seed=7")
    process = tokenized.start(*again)
    wait_for(waiting_run(run).is_dir, process)
    time.sleep(delay)
    process.kill()
    process.communicate()
    checkpoint = resolve_checkpoint(run)
    if read_config(checkpoint)["train"]["seed"] != 7:
        assert checkpoint.name == "step-0000040"
        assert same(state_of(checkpoint), state_of(straight / checkpoint.name))
    tokenized.ok("llm_generate", "--model", run, "sample.max_new_tokens=1")
    tokenized.ok(*again, "train.max_steps=5")
    assert steps(run)[-1] == "step-0000005" and not waiting_run(run).exists()


def finish(shell, run, straight):
    "Resume a run that was stopped by a full disk, and compare it with the undisturbed one."
    assert steps(run) and not being_saved(run)
    check(run, straight)
    shell.ok(*TRAIN, f"name={run.name}", "--resume")
    check(run, straight)
    assert losses(run) == losses(straight)


def test_full_disk(tokenized, straight):
    "A limit on the size of files, as `ulimit -f` sets it, stands in for a disk that is full."
    run = name_run(tokenized, "limited")
    shutil.copytree(straight, run)
    before = steps(run)[:3]
    for name in steps(run)[3:]:
        shutil.rmtree(run / name)
    (run / "latest").write_text(f"{before[-1]}\n")
    whole = (run / before[-1] / "training" / "state.pt").stat().st_size
    limited = ["bash", "-c", f'ulimit -f {whole // 2048}; exec "$@"', "bash"]
    command = tokenized.command(*TRAIN, f"name={run.name}", "--resume")
    where = {"cwd": tokenized.folder, "env": tokenized.env}
    process = subprocess.run([*limited, *command], capture_output=True, text=True, **where)
    said = process.stderr
    assert process.returncode == 2 and "disk full" in said and "Traceback" not in said, said
    assert said.count("\n") == 1 and steps(run) == before
    finish(tokenized, run, straight)


@pytest.fixture
def small_disk(tokenized):
    "A run's folder with room for two checkpoints and a half, and a function that enlarges it."
    run = name_run(tokenized, "disk")
    run.mkdir(parents=True)
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    owner = f"uid={os.getuid()},gid={os.getgid()}"

    def mount(options):
        command = [*as_root, "mount", "-t", "tmpfs", "-o", options, "tmpfs", run]
        return subprocess.run(command, capture_output=True, text=True)

    try:
        made = mount(f"size=1100k,{owner}")
    except OSError as error:
        pytest.skip(f"a small tmpfs needs root: {error}")
    if made.returncode:
        pytest.skip(f"a small tmpfs needs root: {made.stderr.strip()}")
    yield run, lambda: mount(f"remount,size=64m,{owner}")
    subprocess.run([*as_root, "umount", run], check=True)


def test_full_tmpfs(tokenized, straight, small_disk):
    run, enlarge = small_disk
    code, _, err = tokenized(*TRAIN, "name=disk")
    assert code == 2 and "disk full" in err and "Traceback" not in err, err
    assert err.count("\n") == 1
    assert enlarge().returncode == 0
    finish(tokenized, run, straight)
