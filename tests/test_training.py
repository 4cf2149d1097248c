"The loop where a lesson cannot test it: compiled, in bfloat16, and its optimized parts in both."

import pytest
import torch
from torch._dynamo.utils import counters

from llm_course.choices import make_mlp
from llm_course.gpt import GPT
from llm_course.model_config import GPTConfig
from llm_course.packing import Batch
from llm_course.settings import TrainConfig
from llm_course.throughput import has_compiler, optimize_for_training
from llm_course.training import train

SHAPE = dict(vocab_size=32, max_seq_len=16, n_heads=2, d_model=16)
needs_compiler = pytest.mark.skipif(
    not has_compiler(), reason="no C++ compiler (g++ or clang++): torch.compile builds no kernels"
)


def batch(step):
    "Rows with different numbers of targets."
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(SHAPE["vocab_size"], (4, SHAPE["max_seq_len"] + 1), generator=generator)
    targets = ids[:, 1:].clone()
    for row, n in zip(targets, (16, 3, 9, 12)):
        row[n:] = -100
    return Batch(ids[:, :-1], targets)


def run(mlps=("relu2",), optimized=False, **changes):
    "Four steps of a model with a layer for each MLP: losses and gradient norms, and the model."
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE, n_layers=len(mlps)))
    for block, name in zip(model.blocks, mlps):
        block.mlp = make_mlp(name, SHAPE["d_model"])
    if optimized:
        optimize_for_training(model)
    config = TrainConfig(max_steps=4, warmup_steps=1, seq_len=16, eval_every=2, **changes)
    batches = (batch(step) for step in range(100))
    numbers = []
    for metrics in train(model, batches, config, valid=[batch(100)]):
        numbers += [metrics.loss, metrics.grad_norm]
        if metrics.valid_loss is not None:
            numbers.append(metrics.valid_loss)
    return numbers, model


def assert_same_run(one, other):
    numbers, model = one
    expected, reference = other
    torch.testing.assert_close(numbers, expected, rtol=1e-4, atol=1e-5)
    weights = dict(reference.state_dict())
    for name, p in model.state_dict().items():
        torch.testing.assert_close(p, weights.pop(name), rtol=1e-3, atol=1e-4)
    assert weights == {}


@needs_compiler
def test_compile_by_config_is_the_same_run():
    torch._dynamo.reset()
    counters.clear()
    fast = run(compile=True)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0 and not counters["graph_break"]    # it was compiled, each time whole
    slow = run()
    assert counters["stats"]["unique_graphs"] == graphs  # and this was not
    assert_same_run(fast, slow)


@needs_compiler
def test_optimized_parts_compile_whole():
    torch._dynamo.reset()
    counters.clear()
    fast = run(["relu2", "swiglu"], optimized=True, compile=True)
    assert counters["stats"]["unique_graphs"] > 0 and not counters["graph_break"]
    assert_same_run(fast, run(["relu2", "swiglu"]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_optimized_parts_make_the_same_run(dtype):
    mlps = ("relu2", "swiglu", "gelu")
    assert_same_run(run(mlps, optimized=True, dtype=dtype), run(mlps, dtype=dtype))


def test_bfloat16_and_accumulation_stay_close_to_float32():
    exact, _ = run(optimizer="adamw", grad_accum_steps=3)
    near, model = run(optimizer="adamw", grad_accum_steps=3, dtype="bfloat16")
    assert near != exact
    assert all(p.dtype == torch.float32 for p in model.parameters())
    torch.testing.assert_close(near, exact, rtol=0.05, atol=0.01)
