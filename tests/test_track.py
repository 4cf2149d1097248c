"What TensorBoard and Weights & Biases hold after a run is what metrics.jsonl holds, read back with their own readers."
import subprocess
import sys

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


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    datastore = pytest.importorskip("wandb.sdk.internal.datastore")
    from wandb.proto.wandb_internal_pb2 import Record
    monkeypatch.setenv("WANDB_SILENT", "true")
    write(tmp_path, wandb="a project", wandb_mode="offline")
    file, = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    store, rows = datastore.DataStore(), []
    store.open_for_scan(str(file))
    while (data := store.scan_data()) is not None:
        record = Record.FromString(data)
        if record.HasField("history"): rows.append({item.key or "/".join(item.nested_key): item.value_json for item in record.history.item})
    assert [float(row["loss"]) for row in rows] == [4.0, 2.0, pytest.approx(4 / 3)] and [int(row["_step"]) for row in rows] == [1, 2, 3]
    assert "valid_loss" in rows[1] and "valid_loss" not in rows[2] and float(rows[2]["lr"]) == 0.03
    page, = (tmp_path / "wandb").glob("offline-run-*/files/media/html/*.html")
    assert "Once &lt;b&gt;upon&lt;/b&gt;\na time" in page.read_text()
