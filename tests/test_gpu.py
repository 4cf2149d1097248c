"""On a GPU, what the CPU proves: the same logits, gradients and texts, and a training that learns.
Without one these tests are skipped."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from llm_course.batching import Engine
from llm_course.checkpoint import load_checkpoint, load_model, save_checkpoint
from llm_course.decoding import beam_search, generate_speculative
from llm_course.encoder_decoder import EncoderDecoder
from llm_course.engine import SamplingParams
from llm_course.fast import optimize_for_decoding, quantize_int8
from llm_course.gpt import GPT
from llm_course.learning import cross_entropy
from llm_course.model_config import GPTConfig
from llm_course.optim import make_optimizer
from llm_course.packing import Batch
from llm_course.reading import pad_rows
from llm_course.sampling import generate, generate_text
from llm_course.settings import TrainConfig
from llm_course.throughput import has_compiler, optimize_for_training
from llm_course.training import train
from llm_course.variants import Variant
from llm_course.writing import generate_batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

BASE = GPTConfig(vocab_size=300, max_seq_len=64, n_layers=2, n_heads=4, d_model=64)
CHANGES = {
    "default": {},
    "learned": dict(position_encoding="learned"),
    "sinusoidal": dict(position_encoding="sinusoidal"),
    "alibi": dict(position_encoding="alibi"),
    "grouped": dict(n_kv_heads=2),
    "window": dict(sliding_window=16),
    "post": dict(norm_position="post"),
    "sandwich": dict(norm_position="sandwich"),
    "swiglu": dict(mlp="swiglu"),
    "gpt2": dict(mlp="gelu", norm="layernorm", bias=True, qk_norm=False),
    "capped": dict(logit_softcap=20.0),
    "untied": dict(tie_embeddings=False),
    "experts": dict(variant=Variant(n_experts=4)),
    "capped scores": dict(variant=Variant(attention_softcap=30.0)),
    "pattern": dict(sliding_window=16, variant=Variant(window_pattern="SL")),
}


def twins(config):
    "One model on the CPU, and the same on the GPU, in float64."
    torch.manual_seed(1)
    here = GPT(config).double()
    there = GPT(config).double().cuda()
    there.load_state_dict(here.state_dict())
    for model in (here, there):
        optimize_for_training(model)
    return here, there


@pytest.mark.parametrize("name", CHANGES)
def test_same_as_the_cpu(name):
    "Angles and masks are computed in float32, so that float64 agrees to seven digits only."
    here, there = twins(replace(BASE, **CHANGES[name]))
    ids = torch.randint(300, (3, 48))
    documents = torch.arange(48).div(17, rounding_mode="floor").expand(3, -1)
    for rows in (None, documents):
        expected = here(ids, rows)
        found = there(ids.cuda(), None if rows is None else rows.cuda())
        assert_close(found.cpu(), expected, atol=1e-6, rtol=0)
    cross_entropy(expected, ids).backward()
    cross_entropy(found, ids.cuda()).backward()
    for p, q in zip(here.parameters(), there.parameters()):
        assert_close(q.grad.cpu(), p.grad, atol=1e-6, rtol=0)
    here.eval()
    there.eval()
    written = list(generate(here, [1, 2, 3], 70, temperature=0))
    assert list(generate(there, [1, 2, 3], 70, temperature=0)) == written
    prompts = [[1, 2, 3], [4], [5] * 30]
    texts = generate_batch(here, prompts, 20, temperature=0)
    assert generate_batch(there, prompts, 20, temperature=0) == texts


def batches(n):
    "Rows in which every second token repeats the one before it."
    generator = torch.Generator().manual_seed(3)
    for _ in range(n):
        ids = torch.randint(50, (8, 49), generator=generator)
        ids[:, 1::2] = ids[:, ::2][:, :24]
        yield Batch(ids[:, :-1], ids[:, 1:])


def losses(device, **settings):
    torch.manual_seed(1)
    model = GPT(BASE)
    optimize_for_training(model)
    sizes = dict(max_steps=60, warmup_steps=5, seq_len=48, batch_size=8)
    config = TrainConfig(device=device, **sizes, **settings)
    return [record.loss for record in train(model, batches(60), config)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_learns_as_on_the_cpu(optimizer, dtype):
    settings = dict(optimizer=optimizer, dtype=dtype)
    expected = losses("cpu", **settings)
    found = losses("cuda", **settings)
    assert expected[-1] < 3.0  # from 5.7 on
    assert max(abs(a - b) for a, b in zip(expected, found)) < 0.05


@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
def test_compiled_training_learns():
    found = losses("cuda", optimizer="muon", dtype="bfloat16", compile=True)
    assert found[-1] < 3.0


def test_resumed_to_the_bit(tmp_path):
    config = TrainConfig(max_steps=12, warmup_steps=2, device="cuda", seq_len=48, batch_size=8)

    def fresh():
        torch.manual_seed(1)
        model = GPT(replace(BASE, dropout=0.1)).cuda()
        return model, make_optimizer(model, config)

    model, optimizer = fresh()
    rows = list(batches(12))
    undisturbed = []
    for record in train(model, rows, config, optimizer):
        undisturbed.append(record.loss)
        if record.step == 6:
            save_checkpoint(tmp_path / "run", 6, model, None, optimizer, None, config)
    model, optimizer = fresh()
    step = load_checkpoint(tmp_path / "run", model, optimizer)
    resumed = [r.loss for r in train(model, rows[6:], config, optimizer, start_step=step)]
    assert resumed == undisturbed[6:]


def test_the_bundled_model_writes_the_same():
    here, tokenizer = load_model()
    there, _ = load_model(device="cuda")

    def greedy(model):
        return "".join(generate_text(model, tokenizer, "One day", 40, temperature=0))

    text = greedy(here)
    assert greedy(there) == text
    assert greedy(optimize_for_decoding(load_model(device="cuda")[0])) == text
    ids = tokenizer.encode("One day")
    assert beam_search(there, ids, 10)[0].ids == beam_search(here, ids, 10)[0].ids
    draft = GPT(replace(there.config, n_layers=1)).cuda().eval()
    drafted = list(generate_speculative(there, draft, ids, 30, temperature=0))
    assert drafted == list(generate(there, ids, 30, temperature=0))
    assert len(greedy(quantize_int8(load_model(device="cuda")[0]))) > 20


@pytest.mark.parametrize("fixed", [True, False])
def test_the_serving_engine_writes_the_same(fixed):
    "Eight texts in three rows, with a common beginning, and too few blocks: some are put back."
    torch.manual_seed(1)
    here = GPT(BASE).double().eval()
    there = GPT(BASE).double().cuda().eval()
    there.load_state_dict(here.state_dict())
    common = list(range(40))
    prompts = [common[: 3 + 5 * i] for i in range(8)]
    engine = Engine(there, n_rows=3, n_blocks=6, fixed=fixed)
    texts = [engine.submit(ids, 20, SamplingParams(temperature=0)) for ids in prompts]
    while engine.step():
        pass
    expected = generate_batch(here, prompts, 20, temperature=0)
    assert [text.ids[text.n_prompt :] for text in texts] == expected
    assert engine.counts["preemptions"] > 0


@pytest.mark.parametrize("position", ["pre", "post"])
def test_the_encoder_decoder_is_the_same(position):
    "Several sources of different lengths, gradients, texts and beams."
    torch.manual_seed(1)
    config = replace(BASE, norm_position=position, n_kv_heads=2)
    here = EncoderDecoder(config).double().eval()
    there = EncoderDecoder(config).double().cuda().eval()
    there.load_state_dict(here.state_dict())
    ids = torch.randint(300, (3, 20))
    source_ids, source_mask = pad_rows([[1, 2, 3], [7] * 30, list(range(12))])
    expected = here(ids, source_ids, source_mask)
    found = there(ids.cuda(), source_ids.cuda(), source_mask.cuda())
    assert_close(found.cpu(), expected, atol=1e-6, rtol=0)
    cross_entropy(expected, ids).backward()
    cross_entropy(found, ids.cuda()).backward()
    for p, q in zip(here.parameters(), there.parameters()):
        assert_close(q.grad.cpu(), p.grad, atol=1e-6, rtol=0)
    ours = here.reading(source_ids, source_mask)
    theirs = there.reading(source_ids, source_mask)
    prompts = [[1], [2, 3], [4]]
    texts = generate_batch(ours, prompts, 20, temperature=0)
    assert generate_batch(theirs, prompts, 20, temperature=0) == texts
    beams = beam_search(here.reading(source_ids[:1]), [1], 10)
    assert beam_search(there.reading(source_ids[:1]), [1], 10)[0].ids == beams[0].ids
