"What TensorBoard and Weights & Biases hold after a run is what metrics.jsonl holds, read back with their own readers."
import json
import struct
import subprocess
import sys
import time

import pytest

from llm_course.track import Tracker, read_metrics

RECORDS = [{"step": step, "loss": 4 / step, "lr": 0.01 * step, "tokens_per_second": 1000.0 + step, "valid_loss": 2.5 if step == 2 else None} for step in (1, 2, 3)]


def write(run, **where):
    with Tracker(run, **where) as tracker:
        for record in RECORDS: tracker.log(record, sample="Once <b>upon</b>\na time" if record["step"] == 2 else None)


def test_loggers_are_imported_only_when_asked_for():
    code = "import sys, llm_course.track, llm_course.cli; sys.exit(any(name in sys.modules for name in ('wandb', 'tensorboard', 'torch.utils.tensorboard')))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_tensorboard(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path, tensorboard=True)
    with Tracker(tmp_path, start_step=2, tensorboard=True) as tracker: tracker.log({"step": 3, "loss": 9.0})
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert set(scalars) == {"loss", "lr", "tokens_per_second", "valid_loss"}
    assert scalars["loss"] == [(1, 4.0), (2, 2.0), (3, 9.0)] and scalars["valid_loss"] == [(2, 2.5)]   # step 3 once, as the resumed run made it
    text, = events.Tensors("sample/text_summary")
    assert text.step == 2 and text.tensor_proto.string_val[0].decode() == "Once <b>upon</b>\na time"
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3] and read_metrics(tmp_path)[1]["sample"].startswith("Once")


def stored(data):
    "The records of a .wandb file: after 7 bytes, blocks of 32 KiB of pieces; each has a checksum, its length, and whether it is whole, first, middle or last."
    at, record = 7, b""
    while at < len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        if at + 7 > len(data): return
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record
    monkeypatch.setenv("WANDB_SILENT", "true")
    write(tmp_path, wandb="a project", wandb_mode="offline")
    file, = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    end = time.time() + 30
    while True:   # W&B's own process may write a little after `finish` has returned
        records = [Record.FromString(piece) for piece in stored(file.read_bytes())]
        if any(record.HasField("exit") for record in records): break
        assert time.time() < end, "W&B did not finish its file"
        time.sleep(0.1)
    rows = [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item} for record in records if record.HasField("history")]
    assert [row["loss"] for row in rows] == [4.0, 2.0, pytest.approx(4 / 3)] and [row["_step"] for row in rows] == [1, 2, 3]
    assert rows[1]["valid_loss"] == 2.5 and "valid_loss" not in rows[2] and rows[2]["lr"] == 0.03
    page, = (tmp_path / "wandb").glob("offline-run-*/files/media/html/*.html")
    assert "Once &lt;b&gt;upon&lt;/b&gt;\na time" in page.read_text()
