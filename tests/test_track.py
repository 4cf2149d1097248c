"What TensorBoard and Weights & Biases are given is what metrics.jsonl holds."

import subprocess
import sys

import numpy as np
import pytest
import torch

from llm_course.track import Tracker, read_metrics

RECORDS = [
    {
        "step": step,
        "loss": 4 / step,
        "lr": 0.01 * step,
        "tokens_per_second": 1000.0 + step,
        "valid_loss": 2.5 if step == 2 else None,
    }
    for step in (1, 2, 3)
]
SAMPLE = "Once <b>upon</b>\na time"


def write(run, **where):
    with Tracker(run, **where) as tracker:
        for record in RECORDS:
            tracker.log(record, sample=SAMPLE if record["step"] == 2 else None)


def test_loggers_are_imported_only_when_asked_for():
    code = """
import sys
import llm_course.cli
import llm_course.track
loggers = {"wandb", "tensorboard", "torch.utils.tensorboard"}
sys.exit(bool(loggers & set(sys.modules)))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_tensorboard(tmp_path):
    name = "tensorboard.backend.event_processing.event_accumulator"
    reader = pytest.importorskip(name)
    write(tmp_path, tensorboard=True)
    with Tracker(tmp_path, start_step=2, tensorboard=True) as tracker:
        tracker.log({"step": 3, "loss": 9.0})
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = {}
    for tag in events.Tags()["scalars"]:
        scalars[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    assert set(scalars) == {"loss", "lr", "tokens_per_second", "valid_loss"}
    assert scalars["loss"] == [(1, 4.0), (2, 2.0), (3, 9.0)]  # step 3 once, as made again
    assert scalars["valid_loss"] == [(2, 2.5)]
    (text,) = events.Tensors("sample/text_summary")
    assert text.step == 2 and text.tensor_proto.string_val[0].decode() == SAMPLE
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]
    assert read_metrics(tmp_path)[1]["sample"] == SAMPLE


class FakeRun:
    "Stands in for a run of W&B: keeps what it is given."

    def __init__(self):
        self.rows = []
        self.finished = False

    def log(self, values, step):
        assert not self.finished
        self.rows.append((step, values))

    def finish(self):
        self.finished = True


def test_what_wandb_is_given(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    run, asked = FakeRun(), {}

    def init(**settings):
        asked.update(settings)
        return run

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "Html", lambda page: ("page", page))
    write(tmp_path / "mine", wandb="a project", wandb_mode="offline")
    folder = tmp_path / "mine"
    id = (folder / "wandb_id").read_text()
    named = {"project": "a project", "name": "mine", "dir": folder, "mode": "offline"}
    assert asked == named | {"id": id, "resume": "allow"} and len(id) == 8
    assert run.finished and [step for step, _ in run.rows] == [1, 2, 3]
    rows = [values for _, values in run.rows]
    assert [row["loss"] for row in rows] == [4.0, 2.0, pytest.approx(4 / 3)]
    assert rows[1]["valid_loss"] == 2.5 and "valid_loss" not in rows[2] and rows[2]["lr"] == 0.03
    escaped = "<pre>Once &lt;b&gt;upon&lt;/b&gt;\na time</pre>"
    assert rows[1]["sample"] == ("page", escaped) and "sample" not in rows[2]


def test_a_resumed_run_is_the_same_one_in_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    asked = []

    def init(**settings):
        asked.append(settings["id"])
        return FakeRun()

    monkeypatch.setattr(wandb, "init", init)
    for start in (0, 1, 3, 0):
        write(tmp_path, start_step=start, wandb="a project")
    first, second, third, anew = asked
    assert first == second == third != anew
    (tmp_path / "wandb_id").unlink()  # a run that began without W&B
    write(tmp_path, start_step=3, wandb="a project")
    assert len(set(asked)) == 3


def test_values_of_every_kind_reach_all(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    run = FakeRun()
    monkeypatch.setattr(wandb, "init", lambda **settings: run)
    odd = {"array": np.array([1.0, 2.0]), "path": tmp_path, "nan": float("nan"), "map": {"a": None}}
    with Tracker(tmp_path, tensorboard=True, wandb="a project") as tracker:
        tracker.log({"step": 1, "loss": torch.tensor(2.0), **odd})
    (record,) = read_metrics(tmp_path)
    plain = {"array": [1.0, 2.0], "path": str(tmp_path), "map": {"a": None}}
    assert record == {"step": 1, "loss": 2.0, "nan": None, **plain}
    ((step, values),) = run.rows
    assert step == 1 and values["loss"] == 2.0 and values["array"] == [1.0, 2.0]


def test_wandb_offline_writes_into_the_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write(tmp_path, wandb="a project", wandb_mode="offline")
    assert [*(tmp_path / "wandb").glob("offline-run-*/run-*.wandb")]
    (page,) = (tmp_path / "wandb").glob("offline-run-*/files/media/html/*.html")
    assert "Once &lt;b&gt;upon&lt;/b&gt;\na time" in page.read_text()
