"What a run keeps on the disk: one bit that changes is seen, and two writers at once lose nothing."

import json
import random
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from shared import losses, name_run, steps

from llm_course.bpe import BPETokenizer
from llm_course.checkpoint import load_checkpoint, load_model, save_checkpoint
from llm_course.corpus import Tales
from llm_course.dataloader import Batches
from llm_course.formats import load_tokenizer
from llm_course.gpt import GPT
from llm_course.locks import lock_folder
from llm_course.model_config import GPTConfig
from llm_course.tokenfiles import TokenDataset, write_tokens
from llm_course.track import Tracker, read_metrics

RECORDS = [{"step": step, "loss": 4.0 / step} for step in range(1, 21)]
TRAIN = ("llm_train", "--config", "tiny.yaml", "train.max_steps=6", "train.eval_every=3")
TOKENIZE = ("llm_tokenize", "--config", "tiny.yaml")


def new_run(data):
    torch.manual_seed(1)
    shape = GPTConfig(vocab_size=300, n_layers=1, n_heads=2, d_model=16, max_seq_len=64)
    model = GPT(shape)
    return model, torch.optim.AdamW(model.parameters()), Batches(data, 2, 64)


@pytest.fixture
def data(tmp_path):
    "A tokenizer, tokens and a run of two checkpoints, as the commands lay them out."
    stories = Tales().generate(60, seed=1)
    tokenizer = BPETokenizer.train(stories, 300)
    tokenizer.save(tmp_path / "tokenizer")
    for split in ("train", "valid"):
        write_tokens(tmp_path / "tokens", stories, tokenizer, split, shard_tokens=2000)
    parts = new_run(TokenDataset(tmp_path / "tokens"))
    with Tracker(tmp_path / "run") as tracker:
        for record in RECORDS:
            tracker.log(record)
        for step in (10, 20):
            save_checkpoint(tmp_path / "run", step, parts[0], tokenizer, *parts[1:], valid_loss=2.5)
    return tmp_path


def read_all(folder):
    "Read everything as the commands do; how many records are left."
    tokenizer = load_tokenizer(folder / "tokenizer")
    for split in ("valid", "train"):
        tokens = TokenDataset(folder / "tokens", split, tokenizer)
    for checkpoint in (folder / "run" / "step-0000010", folder / "run"):
        load_checkpoint(checkpoint, *new_run(tokens))
        load_model(checkpoint)
    return len(read_metrics(folder / "run"))


@pytest.mark.parametrize("flips", [160, pytest.param(640, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_seen_wherever_it_is(data, flips):
    paths = sorted(path for path in data.rglob("*") if path.is_file())
    assert len(paths) > 25 and read_all(data) == len(RECORDS)
    draw = random.Random(flips)
    accepted = []
    for number in range(flips):
        path = paths[number % len(paths)]
        whole = path.read_bytes()
        place = draw.randrange(len(whole))
        bad = bytearray(whole)
        bad[place] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        try:
            if read_all(data) == len(RECORDS):
                accepted.append((path, place))
        except (ValueError, FileNotFoundError) as error:
            assert len(str(error)) < 400 and "\n" not in str(error)
        path.write_bytes(whole)
    assert not accepted
    assert read_all(data) == len(RECORDS)


def test_a_file_that_is_gone_or_empty_is_seen(data):
    for path in sorted(path for path in data.rglob("*") if path.is_file()):
        if path.name in ("latest", "metrics.jsonl"):
            continue
        whole = path.read_bytes()
        for change in (path.unlink, lambda path=path: path.write_bytes(b"")):
            change()
            if path.name == "config.yaml" and not path.exists():
                continue  # then it is no checkpoint
            if path.parent.name == "tokenizer" and path.name == "tokenizer_kind.json":
                continue  # then the files are another program's
            with pytest.raises((ValueError, FileNotFoundError)):
                read_all(data)
        path.write_bytes(whole)
    assert read_all(data) == len(RECORDS)


def both(shell, first, second):
    "Start two commands at once. Each ends well, or says who has the folder; one ends well."
    runs = [shell.start(*first), shell.start(*second)]
    ends = [(run.communicate(timeout=300), run.returncode) for run in runs]
    for (_, err), code in ends:
        told = "is in use by llm_" in err and f" on {socket.gethostname()}" in err
        assert code == 0 or (code == 2 and told and err.count("\n") == 1), (code, err)
    assert 0 in [code for _, code in ends]


def none_left(folder):
    return [path for path in folder.rglob(".*") if path.name != ".git"]


@pytest.fixture(scope="module")
def straight(tokenized):
    run = name_run(tokenized, "straight")
    tokenized.ok(*TRAIN, "name=straight")
    return run


def check_run(shell, run, straight):
    "A run that is through, or goes on to its end, is the undisturbed one."
    assert steps(run)
    shell.ok(*TRAIN, f"name={run.name}", "--resume")
    assert losses(run) == losses(straight)
    model, expected = (load_model(folder)[0].state_dict() for folder in (run, straight))
    assert all(torch.equal(model[name], expected[name]) for name in expected)
    assert not none_left(run.parent)


PAIRS = [
    pytest.param(first, second, marks=marks)
    for first, second, marks in (
        ((), ("--fresh",), ()),
        ((), (), pytest.mark.slow),
        (("--fresh",), ("--fresh",), pytest.mark.slow),
        (("--resume",), ("--resume",), pytest.mark.slow),
        (("--resume",), ("--fresh",), pytest.mark.slow),
    )
]


@pytest.mark.parametrize("first, second", PAIRS)
def test_two_train_one_run(tokenized, straight, first, second):
    run = name_run(tokenized, "two")
    shutil.rmtree(run, ignore_errors=True)
    if "--resume" in first:
        shutil.copytree(straight, run)
    name = f"name={run.name}"
    both(tokenized, (*TRAIN, name, *first), (*TRAIN, name, *second))
    check_run(tokenized, run, straight)


@pytest.mark.slow
def test_two_tokenize_one_corpus(shell):
    both(shell, TOKENIZE, (*TOKENIZE, "tokenizer.pattern=gpt4"))
    folder = shell.folder / "data"
    tokenizer = load_tokenizer(folder / "tokenizer" / "tales")
    wanted = f"tokenizer.pattern={tokenizer.pattern}"
    shell.ok(*TOKENIZE, wanted)
    assert len(TokenDataset(folder / "processed" / "tales", "valid", tokenizer)) > 1
    assert not none_left(folder)


@pytest.mark.slow
def test_a_holder_on_another_computer_is_not_declared_dead(tokenized, straight):
    lock = straight.with_name(".lock-straight")
    lock.write_text(json.dumps({"name": "llm_train", "process": 7, "host": "far-away"}))
    said = tokenized.refused(*TRAIN, "name=straight", "--fresh")
    assert "llm_train (process 7) on far-away" in said and f"delete {lock}" in said
    lock.unlink()
    with lock_folder(straight):
        assert f"on {socket.gethostname()}" in tokenized.refused(*TRAIN, "name=straight", "--fresh")
    assert steps(straight)[-1] == "step-0000006"


KILLED = """
import os, signal, sys
replace = os.replace
calls = iter(range(10**6))
def mortal(*names):
    if next(calls) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*names)
os.replace = mortal
from llm_course.cli import llm_tokenize
sys.exit(llm_tokenize(sys.argv[2:]))
"""


@pytest.mark.slow
def test_tokenizing_that_is_killed_before_a_renaming_heals(shell):
    wanted = (*TOKENIZE, "tokenizer.pattern=gpt4")
    killed = 0
    for number in range(20):
        shutil.rmtree(shell.folder / "data", ignore_errors=True)
        command = [sys.executable, "-c", KILLED, str(number), *wanted[1:]]
        where = {"cwd": shell.folder, "env": shell.env}
        killed += subprocess.run(command, capture_output=True, **where).returncode == -9
        shell.ok(*wanted)
        tokenizer = load_tokenizer(shell.folder / "data" / "tokenizer" / "tales")
        assert tokenizer.pattern == "gpt4" and not none_left(shell.folder / "data")
        TokenDataset(shell.folder / "data" / "processed" / "tales", "valid", tokenizer)
    assert killed > 8
