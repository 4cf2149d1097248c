"A widget lets go of what it holds, and one training runs at a time."

import gc
import time
import weakref
from unittest.mock import patch

import pytest
import torch

from llm_course.encoder_decoder import EncoderDecoder
from llm_course.gpt import GPT
from llm_course.interface import CharTokenizer
from llm_course.model_config import GPTConfig
from llm_course.packing import Batch
from llm_course.settings import TrainConfig
from llm_course.widgets import (
    AttentionExplorer,
    CrossAttentionExplorer,
    LogitLens,
    Playground,
    TrainingDashboard,
    base,
)

TOKENIZER = CharTokenizer.train(["the cat sat on the mat"])


def tiny_model(kind=GPT):
    shape = dict(vocab_size=TOKENIZER.vocab_size, max_seq_len=32, n_layers=1, n_heads=2, d_model=16)
    return kind(GPTConfig(**shape)).eval()


def explorer_of(kind):
    model = tiny_model(EncoderDecoder if kind is CrossAttentionExplorer else GPT)
    made = kind(model, TOKENIZER, "the")
    made.wait()
    return made


EXPLORERS = [Playground, AttentionExplorer, CrossAttentionExplorer, LogitLens]


@pytest.mark.parametrize("kind", EXPLORERS)
def test_a_closed_explorer_frees_its_model(kind):
    explorer = explorer_of(kind)
    model = weakref.ref(explorer.model)
    explorer.close()
    del explorer
    gc.collect()
    assert model() is None


def test_a_cell_that_runs_again_frees_the_model_of_its_last_run():
    with patch.object(base, "_cell_run", lambda: ("cell", "run 1")):
        model = weakref.ref(explorer_of(Playground).model)
    assert model() is not None
    with patch.object(base, "_cell_run", lambda: ("cell", "run 2")):
        explorer_of(Playground).close()
    gc.collect()
    assert model() is None


def endless_batches():
    ids = torch.randint(TOKENIZER.vocab_size, (2, 9))
    while True:
        time.sleep(0.005)
        yield Batch(ids[:, :-1], ids[:, 1:])


def test_one_training_runs_at_a_time():
    def started():
        settings = TrainConfig(max_steps=10**6, warmup_steps=1)
        dashboard = TrainingDashboard(tiny_model(), endless_batches(), settings)
        dashboard.job.go()
        return dashboard

    first = started()
    second = started()
    made = len(first.records)
    deadline = time.monotonic() + 30
    while len(second.records) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert first.job.state == "paused" and len(first.records) == made
    for dashboard in (first, second):
        dashboard.close()
        assert dashboard.job.state == "stopped"
