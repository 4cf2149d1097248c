"What is computed does not depend on torch's default dtype, nor on a device with float64."

from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close

from llm_course import context
from llm_course.attention import rope
from llm_course.decoding import beam_search, generate_speculative
from llm_course.documents import document_losses
from llm_course.filters import draw
from llm_course.gpt import GPT
from llm_course.heads import rope_cos_sin, rope_inv_freq
from llm_course.interface import CharTokenizer
from llm_course.measure import evaluate
from llm_course.model_config import GPTConfig
from llm_course.packing import Batch
from llm_course.positions import alibi_bias, alibi_slopes, sinusoidal_positions
from llm_course.sampling import generate
from llm_course.settings import TrainConfig
from llm_course.training import train
from llm_course.writing import generate_batch, generate_tokens

TOKENIZER = CharTokenizer.train(["the cat sat on the mat"])
SHAPE = dict(vocab_size=TOKENIZER.vocab_size, max_seq_len=32, n_layers=1, n_heads=2, d_model=16)


def tiny_model(**changes):
    torch.manual_seed(0)
    return GPT(GPTConfig(**SHAPE | changes)).eval()


def batches():
    ids = torch.randint(SHAPE["vocab_size"], (2, 17), generator=torch.Generator().manual_seed(1))
    return [Batch(ids[:, :-1], ids[:, 1:])] * 3


def tensors_in(x):
    if isinstance(x, torch.Tensor):
        return [x]
    if isinstance(x, (tuple, list)):
        return [tensor for part in x for tensor in tensors_in(part)]
    return []


class WithoutFloat64(TorchFunctionMode):
    "The CPU as a device on which there is no float64: no float32 tensor may become one."

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = {tensor.dtype for tensor in tensors_in(out)}
        given = {tensor.dtype for tensor in tensors_in(args)}
        if torch.float64 in made and torch.float32 in given:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return out


def generator():
    return torch.Generator().manual_seed(5)


WORK = {
    "generate": lambda model: list(generate(model, [1], 3, generator=generator())),
    "tokens": lambda model: list(generate_tokens(model, [1], 3, generator=generator())),
    "batch": lambda model: generate_batch(model, [[1], [2]], 3, generator=generator()),
    "beams": lambda model: [beam.ids for beam in beam_search(model, [1], 3)],
    "drafts": lambda model: list(generate_speculative(model, model, [1], 3, generator=generator())),
    "documents": lambda model: document_losses(model, TOKENIZER, ["the", "the cat"])[0],
    "evaluate": lambda model: evaluate(model, batches()),
    "train": lambda model: [
        metrics.loss
        for metrics in train(
            model, batches(), TrainConfig(max_steps=2, warmup_steps=1), valid=batches()
        )
    ],
}


@pytest.mark.parametrize("name", WORK)
def test_works_without_float64(name, monkeypatch):
    work = WORK[name]
    expected = work(tiny_model())
    monkeypatch.setattr(context, "_WITHOUT_FLOAT64", ("cpu",))
    with WithoutFloat64():
        found = work(tiny_model())
    assert type(found) is type(expected)
    if name in ("documents", "evaluate", "train"):
        assert found == pytest.approx(expected, rel=1e-5)
    if name == "beams":
        assert found == expected


def test_draws_without_float64_never_leave_the_line(monkeypatch):
    monkeypatch.setattr(context, "_WITHOUT_FLOAT64", ("cpu",))
    weights = torch.rand(20_000, 3, generator=generator())
    ids = draw(weights, generator())
    assert ids.min() == 0 and ids.max() == 2
    shares = torch.bincount(ids) / len(ids)
    assert_close(shares, (weights / weights.sum(1, keepdim=True)).mean(0), atol=0.02, rtol=0)


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


POSITIONS = torch.arange(3000)
TABLES = {
    "speeds": lambda: rope_inv_freq(64, 5e5),
    "angles": lambda: rope_cos_sin(POSITIONS, rope_inv_freq(64))[0],
    "rope": lambda: rope(torch.ones(3000, 8, dtype=torch.float32), POSITIONS),
    "slopes": lambda: alibi_slopes(12),
    "alibi": lambda: alibi_bias(POSITIONS[-1:], POSITIONS, 12),
    "sinusoidal": lambda: sinusoidal_positions(3000, 64),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tables_do_not_depend_on_the_default_dtype(table, dtype):
    expected = table()
    with default_dtype(dtype):
        found = table()
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize("encoding", ["rope", "learned", "sinusoidal", "alibi"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_float32_model_does_not_depend_on_it(encoding, dtype):
    model = tiny_model(position_encoding=encoding, max_seq_len=2048)
    ids = torch.randint(SHAPE["vocab_size"], (1, 2000), generator=generator())
    stream = batches()
    config = TrainConfig(max_steps=2, warmup_steps=1)
    with torch.no_grad():
        expected = model(ids)
        with default_dtype(dtype):
            assert torch.equal(model(ids), expected)
    losses = [metrics.loss for metrics in train(model, stream, config)]
    again = tiny_model(position_encoding=encoding, max_seq_len=2048)
    with default_dtype(dtype):
        assert [metrics.loss for metrics in train(again, stream, config)] == losses
