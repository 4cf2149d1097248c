"Tokenizing what is too large for a lesson: constant memory, several processes, stops of every kind."

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
import tracemalloc
from pathlib import Path

import pytest
from shared import wait_for

from llm_course.bpe import BPETokenizer
from llm_course.interface import CharTokenizer
from llm_course.seals import seal_json
from llm_course.sources import load_documents
from llm_course.tokenfiles import TokenDataset, is_written, write_tokens

TOKENIZE = (
    "llm_tokenize",
    "--config",
    "tiny.yaml",
    "corpus.source=tales:16000",
    "corpus.shard_tokens=20000",
    "tokenizer.train_documents=400",
)


def files(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_memory_stays_below_the_size_of_the_text(tmp_path):
    tokenizer = CharTokenizer.train(["ab "])
    source = tmp_path / "large.txt"
    n_bytes = 39_000 * 800
    with open(source, "w") as file:
        for _ in range(800):  # 31 MB, 125 MB as the uint32 that the tokenizer returns
            file.write("ab " * 13_000)
    tracemalloc.start()
    documents = load_documents(str(source))
    meta = write_tokens(tmp_path, documents, tokenizer, shard_tokens=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    counts = meta["splits"]["train"]
    assert counts["documents"] == n_bytes / 4000 and counts["bytes"] == n_bytes
    assert len(counts["shards"]) > 20
    assert peak < 30e6, peak  # what is on its way: some batches of text, and their ids


@pytest.mark.parametrize("kind", [BPETokenizer, CharTokenizer])
def test_many_texts_are_written_as_each_alone(tmp_path, kind):
    texts = [f"{i} and {i % 7} " * 500 for i in range(600)]  # 3 MB: several threads work on them
    tokenizer = CharTokenizer.train(texts[:10])
    if kind is BPETokenizer:
        tokenizer = BPETokenizer.train(texts[:50], vocab_size=300)
    write_tokens(tmp_path, texts, tokenizer, shard_tokens=1 << 18)
    dataset = TokenDataset(tmp_path, tokenizer=tokenizer)
    assert len(dataset) == 600 and len(dataset.meta["splits"]["train"]["shards"]) > 2
    for text, ids in zip(texts, dataset):
        alone = [tokenizer.eos_id, *tokenizer.encode_ordinary(text), tokenizer.eos_id]
        assert ids.tolist() == alone


def processes():
    "The parent of each process that lives, by its id; nothing where there is no /proc."
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            found[path.parent.name] = parent
    return found


def children(pid):
    return {child for child, parent in processes().items() if parent == str(pid)}


def wait_until_gone(workers, seconds=10):
    end = time.time() + seconds
    while workers & set(processes()):
        assert time.time() < end, f"a stopped command left {workers} behind"
        time.sleep(0.05)


FEW = (signal.SIGKILL, signal.SIGINT)
MANY = (signal.SIGKILL,) * 8 + (signal.SIGTERM,) * 2


@pytest.mark.parametrize("stops", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_stopped_again_and_again(shell, stops):
    shell.ok(*TOKENIZE, "name=once")
    folder = shell.folder / "data" / "processed" / "again"
    rng = random.Random(len(stops))

    def finished():
        return len([*folder.glob("*/*.offsets.npy")])

    for number in stops:
        if (folder / "meta.json").exists():  # training documents are through
            break
        before = finished()
        process = shell.start(*TOKENIZE, "name=again")
        wait_for(lambda before=before: finished() > before, process)
        time.sleep(rng.uniform(0, 0.2))
        workers = children(process.pid)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode != 0, "it ended before it was stopped"
        if number == signal.SIGINT:
            assert (process.returncode, err) == (130, "llm_tokenize: interrupted\n")
        wait_until_gone(workers)
    shell.ok(*TOKENIZE, "name=again")
    for split in ("train", "valid"):
        once, again = (TokenDataset(folder.parent / name, split) for name in ("once", "again"))
        assert (once.tokens[:] == again.tokens[:]).all() and (once.offsets == again.offsets).all()
    assert not [*folder.rglob(".*")] and not [*folder.rglob("shards.json")]


def test_a_finished_split_is_not_tokenized_again(shell):
    tokenize = (*TOKENIZE, "corpus.source=tales:1000")
    assert "already" not in shell.ok(*tokenize)
    folder = shell.folder / "data" / "processed" / "tales"

    def times():
        return {path: path.stat().st_mtime_ns for path in folder.glob("train-*/*")}

    whole, written = files(folder), times()
    assert shell.ok(*tokenize).count("already in") == 2
    meta = json.loads((folder / "meta.json").read_text())
    del meta["splits"]["valid"]  # as a stop while the held-out documents are written leaves it
    (folder / "meta.json").write_bytes(seal_json(meta))
    shutil.rmtree(next(folder.glob("valid-*")))
    assert shell.ok(*tokenize).count("already in") == 1
    assert files(folder) == whole and times() == written
    fewer = (*tokenize, "corpus.max_documents=50")  # another text, for tokenizer and tokens alike
    assert "with another text" in shell.refused(*fewer)
    shutil.rmtree(shell.folder / "data" / "tokenizer")
    assert "corpus.max_documents=None, and the config asks for 50" in shell.refused(*fewer)
    shutil.rmtree(folder)
    assert "already" not in shell.ok(*fewer)


def test_token_files_of_an_older_version_are_refused_and_written_again(tmp_path):
    texts = ["ab", "ba"]
    tokenizer = CharTokenizer.train(texts)
    write_tokens(tmp_path, texts, tokenizer)
    path = tmp_path / "meta.json"
    new = path.read_text()
    path.write_text(new.replace('"format": 5', '"format": 3'))
    with pytest.raises(ValueError, match="has format 3, this version of llm_course reads format 5"):
        TokenDataset(tmp_path)
    assert not is_written(tmp_path, texts, tokenizer)
    write_tokens(tmp_path, texts, tokenizer)
    assert path.read_text() == new and is_written(tmp_path, texts, tokenizer)


def test_a_terminal_shows_progress(shell):
    termios = pytest.importorskip("termios", reason="Windows has no pseudo-terminal")
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    said = b""
    with subprocess.Popen(
        shell.command(*TOKENIZE, "corpus.source=tales:1000"),
        cwd=shell.folder,
        env=shell.env,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        while more := read_until_closed(ours):
            said += more
    os.close(ours)
    assert process.returncode == 0
    for split in (b"train", b"valid"):
        assert re.search(split + rb" .*\d+ documents \[", said), said


def read_until_closed(descriptor):
    "What a terminal's other side has written; nothing once it is closed (Linux: an error)."
    try:
        return os.read(descriptor, 4096)
    except OSError:
        return b""
