"The loop where a lesson cannot test it: compiled, and in bfloat16 with everything switched on."
import pytest
import torch
from torch._dynamo.utils import counters

from llm_course.dataloader import Batch
from llm_course.gpt import GPT, GPTConfig
from llm_course.training import TrainConfig, has_compiler, train

TINY = GPTConfig(vocab_size=32, max_seq_len=16, n_layers=1, n_heads=2, d_model=16)


def batch(step):
    "Rows with different numbers of targets."
    ids = torch.randint(TINY.vocab_size, (4, TINY.max_seq_len + 1), generator=torch.Generator().manual_seed(step))
    targets = ids[:, 1:].clone()
    for row, n in zip(targets, (16, 3, 9, 12)): row[n:] = -100
    return Batch(ids[:, :-1], targets)


def run(**changes):
    torch.manual_seed(0)
    model = GPT(TINY)
    config = TrainConfig(max_steps=4, warmup_steps=1, seq_len=16, eval_every=2, **changes)
    records = list(train(model, (batch(step) for step in range(100)), config, valid=[batch(100)]))
    return [x for r in records for x in (r.loss, r.grad_norm, r.valid_loss) if x is not None], model


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler (g++ or clang++) on this machine: torch.compile cannot build kernels")
def test_compile_by_config_is_the_same_run():
    torch._dynamo.reset()
    counters.clear()
    fast, compiled = run(compile=True)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0 and not counters["graph_break"]           # it was compiled, each time whole
    slow, eager = run()
    assert counters["stats"]["unique_graphs"] == graphs          # and this was not
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    for name, p in eager.state_dict().items(): torch.testing.assert_close(compiled.state_dict()[name], p, rtol=1e-3, atol=1e-4)


def test_bfloat16_and_accumulation_stay_close_to_float32():
    exact, _ = run(optimizer="adamw", grad_accum_steps=3)
    near, model = run(optimizer="adamw", grad_accum_steps=3, dtype="bfloat16")
    assert near != exact and all(p.dtype == torch.float32 for p in model.parameters())
    torch.testing.assert_close(near, exact, rtol=0.05, atol=0.01)
