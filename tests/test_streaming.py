"""Streams lose nothing and double nothing: cut anywhere, gone on with on other ranks and workers,
over a network that drops, into files and into training."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from functools import partial
from http.client import IncompleteRead
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_course.interface import CharTokenizer
from llm_course.mixtures import Mixture
from llm_course.packing import tokenize_documents
from llm_course.ranks import Ranks
from llm_course.retries import read_on
from llm_course.sources import load_documents, split_of
from llm_course.stream_batches import StreamBatches
from llm_course.streaming import DocumentStream
from llm_course.tokenfiles import TokenDataset, write_tokens
from llm_course.track import read_metrics

ROOT = Path(__file__).parent.parent
STORIES = list(load_documents("tales:600"))
TRAIN = [story for story in STORIES if split_of(story) == "train"]
TOKENIZER = CharTokenizer.train(STORIES)


def write_stories(folder):
    "The stories in four files of JSON lines."
    folder.mkdir()
    for number in range(4):
        rows = [json.dumps({"text": text}) for text in STORIES[150 * number : 150 * (number + 1)]]
        (folder / f"part-{number}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    return write_stories(tmp_path_factory.mktemp("streams") / "stories")


def all_rows(batches, n=None):
    return [batch.targets for batch in islice(batches, n)]


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def of_lists(lists, epochs=1):
    "A stream whose parts are lists."
    stream = DocumentStream("tales:1", None, epochs=epochs, seed=0)
    stream.parts = [partial(list, part) for part in lists]
    return stream


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    window=st.integers(1, 15),
    seq_len=st.integers(1, 24),
    is_mixed=st.booleans(),
    cuts=st.lists(st.tuples(st.integers(0, 8), st.sampled_from([1, 2, 4])), max_size=5),
)
def test_any_cuts_on_any_ranks(sizes, window, seq_len, is_mixed, cuts):
    """After each cut another number of ranks: the rows are those of an undisturbed run on one, and
    each token but a document's first is a target once."""
    lists = [[chr(65 + part) * (1 + i % 5) + str(i) for i in range(n)] for part, n in enumerate(sizes)]
    documents = [document for part in lists for document in part]
    tokenizer = CharTokenizer.train([*documents, "B0123456789"])

    def new(rank, world_size):
        stream = of_lists(lists)
        if is_mixed:  # the second one never ends, so the first one does it
            stream = Mixture({"a": stream, "b": of_lists([["B0", "B1"]], None)}, {"a": 2, "b": 1})
        sizes = dict(window=window, rank=rank, world_size=world_size)
        return StreamBatches(stream, tokenizer, 4 // world_size, seq_len, **sizes)

    rows = []
    state = new(0, 1).state_dict()
    for stop, world_size in [*cuts, (None, 1)]:
        ranks = [new(rank, world_size) for rank in range(world_size)]
        for batches in ranks:
            batches.load_state_dict(state)
        for step in zip(*(all_rows(batches, stop) for batches in ranks), strict=True):
            rows.append(torch.cat(step))
        states = [batches.state_dict() for batches in ranks]
        assert all(other == states[0] for other in states)
        state = states[0]
    assert equal(rows, all_rows(new(0, 1)))
    if not is_mixed:
        targets = Counter(torch.cat(rows).flatten().tolist())
        del targets[-100]
        expected = Counter()
        for ids in tokenize_documents(documents, tokenizer):
            expected.update(ids[1:].tolist())
        assert targets == expected


def read_rows(folder, n, state, workers=1):
    "Rows of this rank of the process group, and the position behind them."
    import torch.distributed as dist

    from llm_course.interface import CharTokenizer
    from llm_course.sources import load_documents
    from llm_course.stream_batches import StreamBatches
    from llm_course.streaming import DocumentStream
    from llm_course.world import World

    world = World(dist.get_rank(), dist.get_world_size())
    tokenizer = CharTokenizer.train(load_documents("tales:600"))
    sizes = dict(rank=world.rank, world_size=world.world_size, add_up=world.sum, workers=workers)
    stream = DocumentStream(folder, seed=3)
    batches = StreamBatches(stream, tokenizer, 8 // world.world_size, 256, window=50, **sizes)
    if state is not None:
        batches.load_state_dict(state)
    rows = [next(batches).targets for _ in range(n)]
    return rows, batches.state_dict()


def test_ranks_that_are_processes_share_the_work(stories):
    """On two processes of a gloo group each tokenizes half of a window, in two workers; the rows
    are those of one process, and so is the position, which one process goes on from."""
    alone = StreamBatches(DocumentStream(stories, seed=3), TOKENIZER, 8, 256, window=50)
    undisturbed = all_rows(alone, 30)
    with Ranks(2) as ranks:
        first = ranks.run(read_rows, stories, 9, None)
        second = ranks.run(read_rows, stories, 12, first[0][1], 2)
    rows = [torch.cat(step) for part in (first, second) for step in zip(part[0][0], part[1][0])]
    assert second[0][1] == second[1][1]
    last = StreamBatches(DocumentStream(stories, seed=3), TOKENIZER, 8, 256, window=50)
    last.load_state_dict(second[0][1])
    assert equal(rows + all_rows(last, 9), undisturbed)


def test_workers_change_nothing(stories):
    "Two workers or none: the same rows, and a position that both go on from."

    def new(workers):
        stream = DocumentStream(stories, epochs=1)
        return StreamBatches(stream, TOKENIZER, 4, 256, window=40, workers=workers)

    undisturbed = all_rows(new(1))
    first = new(2)
    rows = all_rows(first, 21)
    second = new(1)
    second.load_state_dict(first.state_dict())
    first.windows.close()
    assert equal(rows + all_rows(second), undisturbed)


def test_what_a_shuffle_buffer_loses(stories):
    "A resumed `datasets` buffer loses rows, and gives some twice. A window loses and doubles none."
    datasets = pytest.importorskip("datasets")
    files = sorted(map(str, stories.glob("*.jsonl")))
    data = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
    shuffled = data.shuffle(seed=0, buffer_size=100)
    texts = [row["text"] for row in islice(shuffled, 200)]
    resumed = data.shuffle(seed=0, buffer_size=100)
    resumed.load_state_dict(shuffled.state_dict())
    texts += [row["text"] for row in resumed]
    assert len(set(STORIES) - set(texts)) > 20

    def new():
        return StreamBatches(DocumentStream(data, epochs=1), TOKENIZER, 4, 256, window=100)

    first = new()
    rows = all_rows(first, 50)
    second = new()
    second.load_state_dict(first.state_dict())
    rows += all_rows(second)
    expected = Counter()
    for ids in tokenize_documents(TRAIN, TOKENIZER):
        expected.update(ids[1:].tolist())
    found = Counter(torch.cat(rows).flatten().tolist())
    del found[-100]
    assert found == expected and equal(rows, all_rows(new()))


@contextmanager
def server(folder):
    "A server of a folder's files, which hangs up in the middle of an answer as often as it is told."

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            data = (folder / Path(self.path).name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if server.failures:
                server.failures -= 1
                data = data[: len(data) // 2]
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.failures = 0
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", server
    server.shutdown()
    server.server_close()


def rows_of(addresses):
    "The rows of JSON lines on a server, as they come."
    for address in addresses:
        with urllib.request.urlopen(address, timeout=10) as answer:
            received = 0
            for line in answer:
                received += len(line)
                if line.endswith(b"\n"):
                    yield json.loads(line)
            if received < int(answer.headers["Content-Length"]):
                raise IncompleteRead(b"")


def test_a_lost_connection_is_waited_for(stories, monkeypatch, capsys):
    """`datasets` over a network that drops: each time a sentence and a longer wait, then the next
    document; a server that stays away is given up by name."""
    datasets = pytest.importorskip("datasets")
    waits = []
    monkeypatch.setattr("llm_course.streaming.read_on", partial(read_on, sleep=waits.append))
    names = sorted(path.name for path in stories.glob("*.jsonl"))
    with server(stories) as (address, trouble):
        files = [f"{address}/{name}" for name in names]
        choice = {"addresses": files}  # a list makes shards
        data = datasets.IterableDataset.from_generator(rows_of, gen_kwargs=choice)
        trouble.failures = 3
        assert list(DocumentStream(data, epochs=1)) == TRAIN
        said = capsys.readouterr().err
        assert said.count("connection lost at item") == 3 and "try 2 of 8 in 1 s." in said
        trouble.failures = 2
        monkeypatch.setattr("llm_course.sources.open_hub", lambda *choice: data)
        monkeypatch.setattr("llm_course.sources.read_on", partial(read_on, sleep=waits.append))
        assert list(load_documents("hf:someone/stories")) == STORIES and not trouble.failures
        waits.clear()
        stream = DocumentStream(data, epochs=1)
        before = list(islice(stream, 200))
        trouble.failures = 10**9
        with pytest.raises(ConnectionError, match=r"part \d of 4 gave nothing in 8 tries"):
            before.extend(stream)
        assert waits == [1, 2, 4, 8, 16, 32, 60]
        trouble.failures = 0
        resumed = DocumentStream(data, epochs=1)
        resumed.load_state_dict(stream.state_dict())
        assert before + list(resumed) == TRAIN


def test_tokenizing_a_data_set_goes_on(stories, tmp_path):
    "`hf:` into files: stopped in the middle and run again, the ids are those of one reading."
    pytest.importorskip("datasets")
    source = f"hf:{stories}"

    def stopped():
        yield from islice(load_documents(source, "train"), 300)
        raise KeyboardInterrupt

    whole = tmp_path / "whole"
    parts = tmp_path / "parts"
    write_tokens(whole, islice(load_documents(source, "train"), 500), TOKENIZER, shard_tokens=20_000)
    with pytest.raises(KeyboardInterrupt):
        write_tokens(parts, stopped(), TOKENIZER, shard_tokens=20_000)
    begun = len(list(parts.rglob("*.bin")))
    again = islice(load_documents(source, "train"), 500)
    write_tokens(parts, again, TOKENIZER, shard_tokens=20_000)
    ours = TokenDataset(parts)
    theirs = TokenDataset(whole)
    assert begun > 2 and len(ours) == 500
    assert np.array_equal(ours.tokens[:], theirs.tokens[:])
    assert np.array_equal(ours.offsets, theirs.offsets)


def test_an_endless_source_is_read_lazily():
    "Of a source without end no more is read than what is asked for, and a loss opens it there."
    opened = []

    def open_at(start):
        opened.append(start)
        for number in range(start, 10**12):
            if number == 5 and len(opened) == 1:
                raise TimeoutError
            yield number

    read = read_on(open_at, "numbers", sleep=lambda seconds: None)
    assert list(islice(read, 8)) == list(range(8)) and opened == [0, 5]


CONFIG = """\
name: stream
corpus: {source: stories, stream: true, window: 100}
tokenizer: {vocab_size: 500}
model: {n_layers: 1, n_heads: 2, d_model: 32, max_seq_len: 128, dropout: 0.0}
train: {max_steps: 60, batch_size: 4, seq_len: 128, warmup_steps: 2, eval_every: 20, eval_batches: 2}
save_every: 5
keep: null
eval: {documents: 10, stories: 4, show: 0}
"""


def train_command(folder, n, *words):
    "llm_train on n processes, started in the background."
    start = [sys.executable, "-m", "llm_course.cli", "train"]
    if n > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
        start = [sys.executable, *torchrun, "-m", "llm_course.cli", "train"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = ["--config", "config.yaml", *words]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen([*start, *words], cwd=folder, env=env, start_new_session=True, **pipes)


def finish(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def losses_of(folder):
    return [record["loss"] for record in read_metrics(folder / "data" / "runs" / "stream")]


@pytest.mark.slow
def test_a_killed_run_goes_on_at_the_exact_document(tmp_path):
    """kill -9 in the middle of a window, twice, and on another number of ranks after each: the losses
    are those of a run that nobody killed."""
    folders = {}
    for name in ("undisturbed", "killed"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        write_stories(folders[name] / "stories")
        (folders[name] / "config.yaml").write_text(CONFIG)
    finish(train_command(folders["undisturbed"], 1))
    kinds = {1: [], 2: ["parallel.kind=ddp"]}
    more = []
    for n, until in ((1, 15), (2, 35)):
        process = train_command(folders["killed"], n, *kinds[n], *more)
        runs = folders["killed"] / "data" / "runs" / "stream"
        deadline = time.time() + 200
        while not (runs / f"step-{until:07d}").is_dir():
            assert time.time() < deadline and process.poll() is None, process.stdout.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        more = ["--resume"]
    finish(train_command(folders["killed"], 2, *kinds[2], "--resume", "corpus.workers=2"))
    ours = losses_of(folders["killed"])
    theirs = losses_of(folders["undisturbed"])
    assert len(ours) == len(theirs) == 60
    assert np.allclose(ours, theirs, rtol=1e-4)
