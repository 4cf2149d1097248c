"The four commands from a shell: the whole road, interruptions, and bad input."

import json
import os
import re
import shutil
import signal
import subprocess

import pytest
from shared import losses, name_run, steps, wait_for

from llm_course.corpus import Tales

TRAIN = ("llm_train", "--config", "tiny.yaml")


@pytest.fixture(scope="module")
def straight(tokenized):
    "An undisturbed run, to compare others with."
    run = name_run(tokenized, "straight")
    if not run.exists():
        tokenized.ok(*TRAIN, "name=straight")
    return run


def test_the_whole_road(tokenized, straight):
    assert (straight / "loss.png").stat().st_size > 5000 and len(losses(straight)) == 40
    said = tokenized.ok("llm_eval", "--model", straight)
    assert "nats a story" in said
    assert said.count("[not valid, new]") + said.count("[valid, new]") == 6
    assert "temperature 0.8" in said and "temperature 1.0" in said
    generate = ("llm_generate", "--model", straight, "sample.max_new_tokens=9", "sample.seed=3")
    written = tokenized.ok(*generate, "Long ago")
    assert written.startswith("Long ago")
    assert written == tokenized.ok(*generate, input="Long ago\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_says_how_to_go_on(tokenized, straight, number):
    name = f"stopped{number}"
    run = name_run(tokenized, name)
    process = tokenized.start(*TRAIN, f"name={name}")
    wait_for((run / "step-0000005" / "config.yaml").exists, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in err
    line = out.strip().splitlines()[-1]
    assert line.startswith("stopped; to go on: llm_train") and line.endswith("--resume")
    command = line.partition(": ")[2].split()
    tokenized.ok(*command)
    assert losses(run) == losses(straight)


SAMPLES = ("train.max_steps=12", "track.sample_every=4", "sample.max_new_tokens=8")
OUTPUTS = {
    "gone": '"$@" 2>&- | head -n 1',
    "full": '"$@" >/dev/full',
    "closed": '"$@" >&- 2>&- <&-',
    "ascii": 'PYTHONIOENCODING=ascii "$@"',
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in OUTPUTS if name != "gone"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
@pytest.mark.parametrize("output", ["gone", *SLOW])
def test_training_needs_no_terminal(tokenized, output):
    run = name_run(tokenized, output)
    words = tokenized.command(*TRAIN, *SAMPLES, f"name={output}")
    piped = ["bash", "-c", f"set -o pipefail; {OUTPUTS[output]}", "bash", *words]
    where = {"cwd": tokenized.folder, "env": tokenized.env}
    done = subprocess.run(piped, capture_output=True, text=True, timeout=120, **where)
    assert (done.returncode, done.stderr) == (0, "")
    assert steps(run)[-1] == "step-0000012" and len(losses(run)) == 12


def test_a_run_is_not_overwritten_unasked(tokenized, straight):
    before = steps(straight)
    said = tokenized.refused(*TRAIN, "name=straight")
    assert "add --resume to go on, or --fresh" in said
    assert steps(straight) == before


def test_texts_and_numbers_go_to_the_log_and_change_nothing(tokenized, straight):
    run = name_run(tokenized, "texts")
    logged = ("track.sample_every=16", "sample.max_new_tokens=12", "track.tensorboard=true")
    said = tokenized.ok(*TRAIN, "name=texts", *logged)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records if "sample" in record] == [16, 32]
    assert said.count(" writes: ") == 2 and "tokens/s in the median step" in said
    assert losses(run) == losses(straight) and list((run / "tensorboard").iterdir())
    for name in ("mfu", "tokens_per_second", "lr"):
        assert all(record[name] > 0 for record in records)


def test_a_loss_that_runs_away_names_the_checkpoint(tokenized, straight):
    run = name_run(tokenized, "away")
    adamw = (*TRAIN, "name=away", "train.optimizer=adamw")
    wild = (*adamw, "train.lr=1e30", "train.warmup_steps=0")
    said = tokenized.refused(*wild)
    assert re.search(r"step [2-4]: The loss is .*(nan|inf)", said)
    assert "last finite values" in said and "There is no checkpoint yet" in said
    tokenized.ok(*adamw, "train.max_steps=5", "--fresh")
    said = tokenized.refused(*wild, "--resume")  # the config's rate counts, not the saved one
    assert re.search(r"step [7-9]: ", said)
    where = "The last checkpoint is data/runs/away/step-0000005: go on from it with --resume"
    assert where in said and said.endswith("a lower train.lr.\n")  # muon_lr would be refused
    assert steps(run) == ["step-0000005"]
    tokenized.ok(*adamw, "--resume")


def test_documents_of_a_packed_row_are_kept_apart_by_choice(tokenized):
    seen = {}
    for mask in ("true", "false"):
        run = name_run(tokenized, f"mask-{mask}")
        short = ("train.max_steps=3", "train.eval_every=0", f"name=mask-{mask}")
        tokenized.ok(*TRAIN, *short, f"corpus.mask_documents={mask}")
        seen[mask] = losses(run)
    assert len(seen["true"]) == 3 and seen["true"] != seen["false"]


def test_bad_corpus(shell):
    folder = shell.folder
    (folder / "empty.txt").write_text("")
    (folder / "latin.txt").write_bytes(b"a" * 700 + b"\xe9")
    (folder / "short.txt").write_text("\n\n".join(f"Line {i}. " + "word " * 60 for i in range(40)))
    for source, sentence in {
        "nowhere.txt": "no corpus at 'nowhere.txt'",
        "empty.txt": "'empty.txt' is empty",
        "latin.txt": "latin.txt is not UTF-8 text: byte 700 is 0xe9",
    }.items():
        assert sentence in shell.refused("llm_tokenize", f"corpus.source={source}")
    assert not list(folder.glob("data/processed/*/*"))
    long_rows = ("train.seq_len=100000", "model.max_seq_len=100000")
    short = ("corpus.source=short.txt", "tokenizer.vocab_size=270", *long_rows)
    shell.ok("llm_tokenize", *short)
    assert "fewer than one sequence" in shell.refused("llm_train", *short)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train.max_stpes=3"], "did you mean 'train.max_steps'"),
        (["train.max_steps=soon"], "train.max_steps cannot be set: it must be a whole number"),
        (["--config", "nothing.yaml"], "no config at"),
        (["model.d_model=30"], "d_model"),
        (["train.optimizer=adamw", "train.muon_lr=0.01"], "has no Muon"),
        ([], "run llm_tokenize"),
    ],
)
def test_bad_settings(shell, arguments, sentence):
    assert sentence in shell.refused("llm_train", *arguments)


def test_a_tokenizer_that_does_not_belong(tokenized, straight):
    folder = name_run(tokenized, "mixed")
    other = ("--config", "tiny.yaml", "name=other", "corpus.source=tales:300")
    tokenized.ok("llm_tokenize", *other)
    tokens = tokenized.folder / "data" / "tokenizer"
    shutil.rmtree(tokens / "mixed")
    shutil.copytree(tokens / "other", tokens / "mixed")
    assert "another tokenizer" in tokenized.refused(*TRAIN, "name=mixed")
    assert not folder.exists()
    broken = tokenized.folder / "foreign"
    shutil.copytree(straight / steps(straight)[-1], broken)
    shutil.copy(tokens / "other" / "merges.txt", broken)
    assert "merges.txt" in tokenized.refused("llm_generate", "--model", broken)


def test_damaged_checkpoint(tokenized, straight):
    broken = tokenized.folder / "broken"
    shutil.copytree(straight / steps(straight)[-1], broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in tokenized.refused("llm_generate", "--model", broken)
    (broken / "config.yaml").write_text("format: [")
    assert "config.yaml" in tokenized.refused("llm_eval", "--model", broken)
    assert "does not exist" in tokenized.refused("llm_generate", "--model", "nothing")


def test_a_run_of_an_older_version_is_refused_with_one_sentence(tokenized, straight):
    old = tokenized.folder / "old"
    shutil.copytree(straight / steps(straight)[-1], old)
    config = (old / "config.yaml").read_text()
    (old / "config.yaml").write_text(config.replace("format: 3", "format: 1", 1))
    for command in ("llm_generate", "llm_eval"):
        assert "has format 1" in tokenized.refused(command, "--model", old)


def test_full_disk_leaves_the_last_checkpoint_whole(tokenized, straight):
    run = name_run(tokenized, "full")
    run.mkdir(parents=True)
    shutil.copytree(straight / "step-0000010", run / "step-0000010")
    resumed = (*TRAIN, "name=full", "--resume")
    limited = ["bash", "-c", 'ulimit -f 60; exec "$@"', "-", *tokenized.command(*resumed)]
    done = subprocess.run(
        limited,
        cwd=tokenized.folder,
        env=tokenized.env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "disk" in done.stderr and "full" in done.stderr, done.stderr
    assert steps(run) == ["step-0000010"] and not list(run.glob(".tmp*"))
    tokenized.ok(*resumed)
    assert losses(run)[-30:] == losses(straight)[-30:]


def test_generate_reads_any_prompt(tokenized, straight):
    generate = ("llm_generate", "--model", straight, "sample.max_new_tokens=5")
    long = " ".join(Tales().generate(20))
    code, out, err = tokenized(*generate, input=long)
    assert code == 0 and out.startswith(long) and "it sees the last 128" in err
    strange = "Ünïcødé 🦔 <|endoftext|>"
    assert tokenized.ok(*generate, strange).startswith(strange)
    bad_input = tokenized.refused(*generate, input=b"a\xff")
    assert "standard input is not UTF-8 text: byte 1" in bad_input
    assert "in quotes" in tokenized.refused(*generate, "two", "prompts")


def test_generate_follows_every_sampling_rule(tokenized, straight):
    generate = ("llm_generate", "--model", straight, "sample.max_new_tokens=5")
    assert "temperature" in tokenized.refused(*generate, "sample.temperature=-1")
    assert "force_tokens" in tokenized.refused(*generate, "sample.force_tokens=[99999]")
    rules = (
        "sample.typical_p=0.9",
        "sample.repetition_penalty=1.2",
        "sample.frequency_penalty=0.1",
        "sample.presence_penalty=0.1",
        "sample.logit_bias={5: -1.0}",
        "sample.suppress_tokens=[1]",
        "sample.force_tokens=[97,98,99]",  # BPE: id 97 is the byte "a"
        "sample.stop_strings=[bc]",
    )
    assert tokenized.ok(*generate, "Long", *rules) == "Longa\n"


@pytest.mark.parametrize("kind", ["char", "sentencepiece", "bpe"])
def test_other_text_and_other_tokenizers(shell, kind):
    sentences = []
    for i in range(300):
        sentences.append(f"Café number {i} is {'open' if i % 3 else 'shut'} today. " * 8)
    (shell.folder / "my.txt").write_text("\n\n".join(sentences))
    tokenizer = (f"tokenizer.kind={kind}", "tokenizer.vocab_size=300")
    short = ("train.max_steps=4", "eval.show=2")
    settings = ("--config", "tiny.yaml", "corpus.source=my.txt", f"name={kind}", *tokenizer, *short)
    shell.ok("llm_tokenize", *settings)
    shell.ok("llm_train", *settings)
    assert "bits per byte" in shell.ok("llm_eval", *settings)
    assert shell.ok("llm_generate", "Café", "sample.max_new_tokens=4").startswith("Café")


@pytest.mark.parametrize("name", ["llm_tokenize", "llm_train", "llm_eval", "llm_generate"])
def test_help(shell, name):
    said = shell.ok(name, "--help")
    assert said.startswith(f"usage: {name}") and "--config" in said
