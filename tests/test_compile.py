"torch.compile takes the whole model, without a graph break, for training and for writing."

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from llm_course.gpt import GPT
from llm_course.model_config import GPTConfig

TINY = dict(vocab_size=64, max_seq_len=96, n_layers=2, n_heads=2, d_model=32)
OTHERS = dict(
    sliding_window=8,
    n_kv_heads=1,
    mlp="swiglu",
    position_encoding="alibi",
    bias=True,
    logit_softcap=5.0,
)
CHOICES = {"default": {}, "others": OTHERS}
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))),
    reason="no C++ compiler on this machine: torch.compile cannot build kernels",
)
each_choice = pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)


@pytest.fixture
def compiled():
    """(model, compiled model, what counts its compilations) of a config, compiled whole: a graph
    break is an error."""

    def make(backend="inductor", **changes):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = GPT(GPTConfig(**TINY, **changes))
        counter = CompileCounterWithBackend(backend)
        return model, torch.compile(model, fullgraph=True, backend=counter), counter

    yield make
    torch._dynamo.reset()


def gradients(run, model, ids, document_ids=None):
    "The logits, and every parameter's gradient."
    model.zero_grad()
    logits = run(ids, document_ids)
    F.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    return logits.detach(), [p.grad.clone() for p in model.parameters()]


@needs_compiler
@each_choice
def test_training(compiled, choice):
    model, fast, counter = compiled(**choice)
    ids = torch.randint(64, (2, 40))
    kinds = [None]
    if not choice:
        kinds.append((torch.arange(40) // 15).expand(2, -1))  # packed rows, too
    for document_ids in kinds:
        ours = gradients(fast, model, ids, document_ids)
        plain = gradients(model, model, ids, document_ids)
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)
    for _ in range(3):
        gradients(fast, model, ids)
    assert counter.frame_count == len(kinds)


@needs_compiler
@each_choice
def test_writing_with_the_cache(compiled, choice):
    model, fast, counter = compiled(**choice)
    model.eval()
    ids = torch.randint(64, (2, 16 + 64))
    with torch.inference_mode():
        whole = model(ids)
        cache = model.make_cache(2)
        pieces = [fast(ids[:, :16], cache=cache)]
        for t in range(16, 80):
            pieces.append(fast(ids[:, t : t + 1], cache=cache))
    assert counter.frame_count == 2  # the prompt, and a token; no position compiles anew
    assert cache.host_lengths == [80, 80]  # read back, as compiled code does not count on the host
    limit = 1e-5 * whole.abs().max().item()
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=limit, rtol=0)


def test_plain_and_compiled_steps_in_turn(compiled):
    model, fast, counter = compiled("aot_eager", sliding_window=8)
    model.eval()
    ids = torch.randint(64, (2, 40))
    with torch.inference_mode():
        whole = model(ids)
        cache = model.make_cache(2, slack=3)
        logits = [model(ids[:, :10], cache=cache)]
        for t in range(10, 40, 3):
            logits.append(fast(ids[:, t : t + 1], cache=cache))
            logits.append(model(ids[:, t + 1 : t + 3], cache=cache))
            cache.crop(t + 2)  # the last token is taken back, and read again
            model(ids[:, t + 2 : t + 3], cache=cache)
    assert counter.frame_count == 1
    assert cache.lengths.tolist() == cache.host_lengths == [40, 40]
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, atol=1e-5, rtol=0)


def test_rows_of_different_lengths(compiled):
    # traced whole, run by PyTorch: needs no compiler
    model, fast, counter = compiled("aot_eager", sliding_window=8)
    model.eval()
    ids = torch.randint(64, (2, 30))
    lengths = torch.tensor([12, 5])
    with torch.inference_mode():
        cache = model.make_cache(2)
        fast(ids[:, :12], cache=cache, n_new_tokens=lengths)
        for i in range(10):
            logits = fast(ids[torch.arange(2), lengths + i][:, None], cache=cache)
        alone = [model(ids[row : row + 1, : n + 10])[0, -1:] for row, n in enumerate(lengths)]
    assert counter.frame_count == 2
    torch.testing.assert_close(logits, torch.stack(alone), atol=1e-5, rtol=0)


def test_a_full_cache_is_an_error_in_traced_code_too(compiled):
    model, fast, _ = compiled("aot_eager")
    ids = torch.zeros(1, 4, dtype=torch.long)
    with torch.inference_mode():
        cache = model.eval().make_cache(1, max_seq_len=4)
        fast(ids, cache=cache)
        with pytest.raises(Exception, match="out of (bounds|range)"):
            fast(ids[:, :1], cache=cache)
