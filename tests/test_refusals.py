"What cannot work is refused in one sentence, and costs neither a trained run nor another's data."

import os
import shutil
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from shared import TINY, losses, steps

from llm_course import cli
from llm_course.checkpoint import load_model
from llm_course.evaluation import perplexity
from llm_course.resume import put_aside
from llm_course.run_folder import read_config

TRAIN = ("--config", "tiny.yaml", "train.max_steps=6", "save_every=3", "track.sample_every=0")
RUN = Path("data/runs/tales")


def call(name, *argv):
    "(exit code, standard output, standard error) of a command in this process."
    out = StringIO()
    err = StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = getattr(cli, name)([str(word) for word in argv])
    return code, out.getvalue(), err.getvalue()


def ok(name, *argv):
    code, out, err = call(name, *argv)
    assert code == 0, err
    return out


def refused(name, *argv):
    code, _, err = call(name, *argv)
    assert code == 2 and err.count("\n") == 1 and len(err) <= 300, (argv, code, err)
    return err


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory):
    "A folder in which a run of six steps was trained."
    home = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("project"))
    Path("tiny.yaml").write_text(TINY)
    ok("llm_tokenize", *TRAIN)
    ok("llm_train", *TRAIN)
    shutil.copytree(RUN, "kept")
    yield
    os.chdir(home)


@pytest.fixture(autouse=True)
def trained(project):
    "The run as it was trained, for each test."
    shutil.rmtree(RUN, ignore_errors=True)
    shutil.copytree("kept", RUN)


@pytest.mark.parametrize("flag", ["--fresh", "--resume"])
@pytest.mark.parametrize(
    "wrong",
    [
        "keep=0",
        "save_every=0",
        "train.eval_batches=-1",
        "train.device=meta",
        "train.batch_size=10000000000000",
        "model.n_layers=100000000",
        "model.d_model=33",
        "tokenizer.vocab_size=601",
        "tokenizer.pattern=gpt4",
        "corpus.source=tales:401",
        "corpus.source=nowhere.txt",
        "sample.top_p=2",
        "sample.suppress_tokens=[600]",
        "sample.stop_strings=[!]",
        "eval.stories=0",
        "plot=nowhere/curve.png",
        "name=../up",
        "--nothing",
    ],
)
def test_a_refusal_costs_nothing(wrong, flag):
    refused("llm_train", *TRAIN, wrong, flag)
    assert steps(RUN) == ["step-0000003", "step-0000006"] and len(losses(RUN)) == 6
    load_model(RUN)


def test_a_new_run_that_fails_gives_the_old_one_back():
    wild = ("train.optimizer=adamw", "train.lr=1e30", "train.warmup_steps=0", "--fresh")
    assert "There is no checkpoint yet" in refused("llm_train", *TRAIN, *wild)
    assert steps(RUN) == ["step-0000003", "step-0000006"] and len(losses(RUN)) == 6


def test_a_new_run_that_was_killed_gives_the_old_one_back():
    (RUN / "notes.txt").write_text("mine")
    put_aside(RUN.absolute())
    (RUN / "metrics.jsonl").write_text("")  # what it had written until then
    assert steps(RUN) == [] and (RUN / "notes.txt").exists()
    assert "already holds a run, at step-0000006" in refused("llm_train", *TRAIN)
    assert len(losses(RUN)) == 6 and (RUN / "notes.txt").read_text() == "mine"


def test_a_new_run_replaces_the_old_one_when_it_is_saved():
    ok("llm_train", *TRAIN, "train.max_steps=5", "--fresh")
    assert steps(RUN) == ["step-0000003", "step-0000005"]
    assert [path.name for path in RUN.parent.iterdir() if "replaced" in path.name] == []


@pytest.mark.parametrize(
    "other",
    [
        "model.dropout=0.1",
        "model.rope_theta=500",
        "train.optimizer=adamw",
        "train.seq_len=128",
        "train.seed=1",
        "corpus.mask_documents=false",
        "train.max_steps=5",
    ],
)
def test_another_run_is_not_gone_on_with(other):
    name, _, value = other.partition("=")
    said = refused("llm_train", *TRAIN, other, "--resume")
    assert name in said and value in said
    assert steps(RUN) == ["step-0000003", "step-0000006"]


def test_what_may_change_takes_effect_and_is_told():
    changed = {
        "train.max_steps": 8,
        "train.batch_size": 3,
        "train.grad_accum_steps": 2,
        "train.lr": 0.001,
        "train.weight_decay": 0.1,
        "train.beta1": 0.8,
        "train.max_grad_norm": 0.5,
        "keep": 1,
    }
    said = ok("llm_train", "--resume", *(f"{name}={value}" for name, value in changed.items()))
    assert "changed     train.batch_size: 4 → 3" in said and said.count("changed ") == len(changed)
    assert "from step 6 to 8" in said and steps(RUN)[-1] == "step-0000008"
    saved = read_config(RUN)
    assert saved["train"]["warmup_steps"] == 2 and saved["train"]["weight_decay"] == 0.1


def test_without_a_file_the_runs_own_settings_count():
    shutil.rmtree(RUN / "step-0000006")
    (RUN / "latest").unlink()
    said = ok("llm_train", "--resume")
    assert "changed " not in said and "from step 3 to 6" in said
    assert losses(RUN) == losses(Path("kept"))


def test_other_data_under_the_same_name_is_noticed():
    for folder, word in (("a", "fox"), ("b", "лиса")):
        Path(folder).mkdir()
        texts = [f"{word} {i} " * 60 for i in range(100)]
        Path(folder, "input.txt").write_text("\n\n".join(texts), encoding="utf-8")
    short = ("tokenizer.vocab_size=270", "train.seq_len=32", "eval.show=0")
    ok("llm_tokenize", "corpus.source=a/input.txt", *short)
    assert "another name=" in refused("llm_tokenize", "corpus.source=b/input.txt", *short)
    assert "another name=" in refused("llm_train", "corpus.source=b/input.txt", *short)
    Path("a/input.txt").write_text("\n\n".join(f"hen {i} " * 60 for i in range(100)))
    assert "another text" in refused("llm_tokenize", "corpus.source=a/input.txt", *short)


def test_a_model_that_ran_away_can_be_measured():
    assert perplexity(800.0) == float("inf")
