"""Training in JAX is training in PyTorch: the losses of 50 AdamW steps and the weights after them, on
one device and on two, from the same token files; compiled once; and nothing is harmed."""

from itertools import islice
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from numpy.testing import assert_allclose

from llm_course import jax_training
from llm_course.bpe import BPETokenizer
from llm_course.checkpoint import load_model
from llm_course.corpus import Tales
from llm_course.dataloader import Batches
from llm_course.gpt import GPT
from llm_course.jax_gpt import from_torch, named_arrays, save_jax
from llm_course.jax_training import (
    TrainState,
    decay_mask,
    evaluate_jax,
    make_optimizer_jax,
    make_train_step,
    stack_batches,
    train_jax,
)
from llm_course.measure import evaluate
from llm_course.model_config import GPTConfig
from llm_course.optim import parameter_groups
from llm_course.packing import Batch
from llm_course.settings import TrainConfig
from llm_course.throughput import NonFiniteLossError
from llm_course.tokenfiles import TokenDataset, write_tokens
from llm_course.training import train

TINY = dict(vocab_size=512, max_seq_len=64, n_layers=1, n_heads=4, d_model=32)
STEPS = dict(optimizer="adamw", max_steps=50, warmup_steps=5, weight_decay=0.1)
TOLERANCE = {"float32": 1e-5, "float64": 1e-9}
# Models and settings, which together have every kind of weight, schedule and step.
CASES = {
    "course": (dict(n_kv_heads=2), dict(grad_accum_steps=2)),
    "gpt2": (
        dict(
            position_encoding="learned",
            norm="layernorm",
            mlp="gelu",
            bias=True,
            qk_norm=False,
        ),
        dict(schedule="cosine", min_lr_ratio=0.1, max_grad_norm=0.5, beta2=0.99),
    ),
    "llama": (
        dict(mlp="swiglu", tie_embeddings=False, qk_norm=False),
        dict(schedule="wsd", max_grad_norm=float("inf")),
    ),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    stories = Tales().generate(300, seed=7)
    tokenizer = BPETokenizer.train(stories[:100], vocab_size=512)
    write_tokens(folder, stories, tokenizer)
    return TokenDataset(folder, "train", tokenizer)


def new_model(**changes):
    torch.manual_seed(0)
    return GPT(GPTConfig(**TINY | changes))


def batches(dataset, **options):
    return Batches(dataset, 4, 64, **options)


def weights_of(model):
    return nnx.state(model, nnx.Param)


def losses(run):
    return np.array([step.loss for step in run])


def same_in_both(dataset, case, dtype):
    "Train both from the same weights; the JAX model, and its losses."
    shape, settings = CASES[case]
    config = TrainConfig(**STEPS | settings)
    reference = new_model(**shape).to(getattr(torch, dtype))
    model = from_torch(reference, dtype)
    expected = list(train(reference, batches(dataset), config))
    found = list(train_jax(model, batches(dataset), config))
    atol = TOLERANCE[dtype]
    assert len(found) == 50
    assert_allclose(losses(found), losses(expected), rtol=0, atol=atol)
    for name in ("step", "tokens", "lr"):
        assert [getattr(s, name) for s in found] == [getattr(s, name) for s in expected]
    norms = [[step.grad_norm for step in run] for run in (found, expected)]
    assert_allclose(*norms, rtol=10 * atol)
    return reference, model, losses(found)


@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_in_float64(dataset, case):
    with jax.enable_x64(True):
        reference, model, _ = same_in_both(dataset, case, "float64")
        weights = named_arrays(weights_of(model))
        for name, parameter in reference.named_parameters():
            assert weights[name].dtype == np.float64
            assert_allclose(weights[name], parameter.detach(), rtol=0, atol=1e-9, err_msg=name)


def test_fifty_steps_in_float32_compiled_once_and_the_same_on_two_devices(dataset):
    with patch.object(jax_training, "summed_loss_jax", wraps=jax_training.summed_loss_jax) as loss:
        _, _, expected = same_in_both(dataset, "course", "float32")
        assert loss.call_count == 1  # traced once, in 50 steps of two batches each
        shape, settings = CASES["course"]
        reference = new_model(**shape)
        model = from_torch(reference)
        config = TrainConfig(**STEPS | settings)
        devices = jax.devices()
        assert len(devices) == 2
        run = list(train_jax(model, batches(dataset), config, devices=devices))
        assert loss.call_count == 2
    assert_allclose(losses(run), expected, rtol=0, atol=1e-5)
    for leaf in jax.tree.leaves(weights_of(model)):
        here, there = leaf.addressable_shards
        assert (here.device, there.device) == tuple(devices)
        assert np.array_equal(here.data, there.data)
    for p, q in zip(reference.parameters(), new_model(**shape).parameters()):
        assert torch.equal(p, q)  # nothing was taken from where the weights came from


@pytest.mark.slow
def test_the_program_for_two_devices_adds_up_gradients(dataset):
    model = from_torch(new_model())
    optimizer = make_optimizer_jax(TrainConfig(**STEPS))
    weights = weights_of(model)
    state = TrainState(weights, optimizer.init(weights))
    whole, by_rows = jax_training._shardings(jax.devices())
    stack = jax.device_put(stack_batches([next(batches(dataset))], vocab_size=512), by_rows)
    assert [shard.data.shape for shard in stack.ids.addressable_shards] == [(1, 2, 64)] * 2
    step = make_train_step(model, optimizer)
    program = step.lower(jax.device_put(state, whole), stack).compile().as_text()
    assert "all-reduce(" in program


def test_token_files_are_read_by_both(dataset):
    first, second = islice(batches(dataset), 2)
    stack = stack_batches([first, second], vocab_size=512)
    for part, a, b in zip(stack, first, second):
        assert part.dtype == np.int32
        assert np.array_equal(part, np.stack([a.numpy(), b.numpy()]))


@pytest.mark.parametrize("case", CASES)
def test_the_same_weights_decay(case):
    reference = new_model(**CASES[case][0])
    names = {p: name for name, p in reference.named_parameters()}
    expected = {}
    for group in parameter_groups(reference, weight_decay=0.1):
        expected |= {names[p]: group["weight_decay"] > 0 for p in group["params"]}
    mask = decay_mask(weights_of(from_torch(reference)))
    assert named_arrays(jax.tree.map(jnp.array, mask)) == expected


def test_held_out_loss_and_the_folder_that_pytorch_reads(dataset, tmp_path):
    model = from_torch(new_model())
    held_out = list(islice(batches(dataset, seed=1), 3))
    settings = dict(max_steps=4, warmup_steps=1, eval_every=2, grad_accum_steps=2)
    config = TrainConfig(**STEPS | settings)
    seven = islice(batches(dataset), 7)  # the last step has one batch
    run = list(train_jax(model, seven, config, held_out))
    assert [step.valid_loss is None for step in run] == [True, False, True, False]
    assert evaluate_jax(model, held_out) == run[-1].valid_loss
    save_jax(tmp_path, 4, model)
    loaded, _ = load_model(tmp_path)
    assert_allclose(evaluate(loaded, held_out), run[-1].valid_loss, rtol=0, atol=1e-5)


def test_a_step_that_would_harm_is_not_made(dataset):
    model = from_torch(new_model())
    config = TrainConfig(**STEPS | dict(lr=1e30, max_grad_norm=float("inf")))
    good = None
    with pytest.raises(NonFiniteLossError) as caught:
        for step in train_jax(model, batches(dataset), config):
            good = (step, named_arrays(jax.tree.map(jnp.copy, weights_of(model))))
    step, weights = good
    assert caught.value.last == step and caught.value.step == step.step + 1
    for name, array in named_arrays(weights_of(model)).items():
        assert np.array_equal(array, weights[name]), name
        assert np.isfinite(array).all(), name


def test_what_is_refused(dataset):
    model = from_torch(new_model())
    first = next(batches(dataset))
    three_rows = Batch(*(part[:3] for part in first))
    padding = first._replace(targets=torch.full((4, 64), -100))
    strange = first._replace(ids=first.ids + 500)
    config = TrainConfig(**STEPS)
    for words, call in {
        "optimizer='muon' is not built in JAX": lambda: train_jax(model, [first], TrainConfig()),
        "dtype='bfloat16' is not built in JAX": lambda: train_jax(
            model, [first], TrainConfig(**STEPS, dtype="bfloat16")
        ),
        "3 rows cannot be shared equally by 2 devices": lambda: train_jax(
            model, [three_rows], config, devices=jax.devices()
        ),
        "vocabulary goes from 0 to 511": lambda: train_jax(model, [strange], config),
        "no target to train on": lambda: train_jax(model, [padding], config),
        "Weights in bfloat16 are not trained": lambda: train_jax(
            from_torch(new_model(), jnp.bfloat16), [first], config
        ),
        "model is a GPT, not of flax.nnx": lambda: train_jax(new_model(), [first], config),
        "has no batch": lambda: train_jax(model, [first], config, valid=[]),
    }.items():
        with pytest.raises(ValueError, match=words):
            next(call())
    with pytest.raises(ValueError, match="no target to evaluate"):
        evaluate_jax(model, [])
