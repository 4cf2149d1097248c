"""The GPT in JAX is the GPT in PyTorch: logits and gradients for every choice that it supports, the
cache, folders in both directions, and a sentence for what it does not support."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from llm_course.checkpoint import load_model, save_checkpoint
from llm_course.choices import MLPS, NORMS
from llm_course.gpt import GPT
from llm_course.jax_gpt import SUPPORTED, JaxGPT, from_torch, load_jax, named_arrays, save_jax
from llm_course.model_config import GPTConfig
from llm_course.positions import ROPE_SCALINGS, RopeScaling
from llm_course.variants import Variant

TINY = dict(vocab_size=50, max_seq_len=16, n_layers=1, n_heads=4, d_model=32, d_ff=48)


def scaled(kind):
    return RopeScaling(kind=kind, factor=4.0, original_max_seq_len=8, high_freq_factor=8.0)


# Together they have every value of every setting: see the next test.
CONFIGS = {
    "course": GPTConfig(**TINY, n_kv_heads=2),
    "gpt2": GPTConfig.gpt2(**TINY),
    "llama": GPTConfig.llama(**TINY, n_kv_heads=2, rope_scaling=scaled("llama3")),
    "mistral": GPTConfig.mistral(**TINY, sliding_window=5),
    "qwen3": GPTConfig.qwen3(**TINY, n_kv_heads=1, d_head=12),
    "capped": GPTConfig(**TINY, mlp="geglu", logit_softcap=0.05, rope_scaling=scaled("yarn")),
    "shifted": GPTConfig(**TINY, mlp="gelu", norm="layernorm", qkv_bias=True),
    "nowhere": GPTConfig(**TINY, mlp="silu", position_encoding="none", tie_embeddings=False),
    "linear": GPTConfig(**TINY, mlp="relu", bias=True, rope_scaling=scaled("linear")),
}
each_config = pytest.mark.parametrize("name", CONFIGS)


def test_the_configs_have_every_choice():
    def found(name):
        return {getattr(config, name) for config in CONFIGS.values()}

    assert found("mlp") == set(MLPS)
    assert found("norm") == set(NORMS)
    assert found("position_encoding") == set(SUPPORTED["position_encoding"])
    kinds = {c.rope_scaling.kind for c in CONFIGS.values() if c.rope_scaling}
    assert kinds == set(ROPE_SCALINGS)
    for flag in ("qk_norm", "bias", "tie_embeddings"):
        assert found(flag) == {True, False}
    for name in ("n_kv_heads", "sliding_window", "qkv_bias", "logit_softcap"):
        assert len(found(name)) >= 2


def make_gpt(config, dtype=torch.float32):
    "A GPT whose every weight is at random: norms and biases, too."
    torch.manual_seed(0)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.to(dtype)


def make_rows(seed=0):
    "Ids, the documents of the tokens, and targets, each (2, 16)."
    ids, targets = np.random.default_rng(seed).integers(50, size=(2, 2, 16))
    documents = np.array([[0] * 5 + [1] * 11, [7] * 16])
    return ids, documents, targets


def from_pytorch(model, ids, documents, targets):
    "Logits, and gradients of the loss by name."
    ids, documents, targets = map(torch.from_numpy, (ids, documents, targets))
    logits = model(ids, documents)
    F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    return logits.detach().numpy(), {name: p.grad.numpy() for name, p in model.named_parameters()}


@nnx.jit
def from_jax(model, ids, documents, targets):
    "The same of a JaxGPT."

    def loss(model):
        logits = model(ids, documents)
        log_probs = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_probs, targets[..., None], -1).mean(), logits

    (_, logits), gradients = nnx.value_and_grad(loss, has_aux=True)(model)
    return logits, gradients


def assert_equal_within(tolerance, found, wanted):
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=0)


def compare(model, jax_model, tolerance):
    rows = make_rows()
    wanted, wanted_gradients = from_pytorch(model, *rows)
    logits, gradients = from_jax(jax_model, *rows)
    assert_equal_within(tolerance, np.asarray(logits), wanted)
    found = named_arrays(gradients)
    assert found.keys() == wanted_gradients.keys()
    for name, gradient in wanted_gradients.items():
        assert_equal_within(tolerance, found[name], gradient)


@each_config
def test_logits_and_gradients(name):
    model = make_gpt(CONFIGS[name])
    compare(model, from_torch(model), 1e-5)


SLOWER = [pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS if name != "capped"]


@pytest.mark.parametrize("name", ["capped", *SLOWER])
def test_logits_and_gradients_in_float64(name):
    with jax.enable_x64(True):
        model = make_gpt(CONFIGS[name], torch.float64)
        compare(model, from_torch(model, jnp.float64), 1e-9)


@pytest.fixture(scope="module")
def model():
    return from_torch(make_gpt(CONFIGS["course"]))


@jax.jit
def read(model, ids, positions, cache):
    "Logits, and the cache after them; a slot holds the token of its own position."
    slots = jnp.arange(cache[0][0].shape[1])
    return model.read(ids, positions, slots <= positions[..., None], cache)


def empty_cache(model, n_rows, n_slots):
    attention = model.blocks[0].attention
    zeros = jnp.zeros((n_rows, n_slots, attention.n_kv_heads, attention.d_head))
    return [(zeros, zeros) for _ in model.blocks]


def test_a_cache_changes_no_logits(model):
    "A text in two pieces, as PyTorch reads it at once; then rows that stand at different places."
    ids, _, _ = make_rows()
    whole = make_gpt(CONFIGS["course"])(torch.from_numpy(ids)).detach().numpy()
    cache = empty_cache(model, 2, 16)
    pieces = []
    for start, end in pairwise((0, 8, 16)):
        positions = jnp.array([np.arange(start, end)] * 2)
        logits, cache = read(model, ids[:, start:end], positions, cache)
        pieces.append(logits)
    assert_equal_within(1e-6, np.concatenate(pieces, axis=1), whole)
    shifted = jnp.array([np.arange(8, 16), np.arange(3, 11)])  # the second row is read again
    again = np.stack([ids[0, 8:], ids[1, 3:11]])
    logits, _ = read(model, again, shifted, cache)
    assert_equal_within(1e-6, np.asarray(logits), np.stack([whole[0, 8:], whole[1, 3:11]]))


def same_weights(a, b):
    "Whether two PyTorch models agree to the bit."
    b = b.state_dict()
    return all(torch.equal(weight, b[name]) for name, weight in a.state_dict().items())


@pytest.mark.parametrize("name", ["course", "nowhere", "gpt2"])
def test_folders_in_both_directions(name, tmp_path):
    "Every weight stays as it is, to the bit, and so does the file."
    ours = make_gpt(CONFIGS[name])
    first = save_checkpoint(tmp_path / "first", 7, ours)
    model, tokenizer = load_jax(first)
    assert tokenizer is None and model.config == CONFIGS[name]
    second = save_jax(tmp_path / "second", 7, model)
    loaded, _ = load_model(second)
    assert same_weights(ours, loaded) and loaded.config == CONFIGS[name]
    files = ("config.yaml", "model.safetensors")
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


def test_the_bundled_model_and_its_tokenizer(tmp_path):
    model, tokenizer = load_jax()
    folder = save_jax(tmp_path / "run", 1, model, tokenizer, valid_loss=0.5)
    loaded, again = load_model(folder)
    assert same_weights(load_model()[0], loaded)
    assert again.encode("Mia has a red ball.") == tokenizer.encode("Mia has a red ball.")


def test_first_weights_are_spread_as_in_pytorch():
    config = GPTConfig(vocab_size=1000, n_layers=1, d_model=32, n_heads=2, tie_embeddings=False)
    wanted = GPT(config).state_dict()
    found = named_arrays(nnx.state(JaxGPT(config, nnx.Rngs(0)), nnx.Param))
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert found[name].shape == tuple(weight.shape)
        np.testing.assert_allclose(found[name].std(), weight.std(correction=0), rtol=0.1)
        np.testing.assert_allclose(found[name].mean(), weight.mean(), atol=0.1)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"position_encoding": "alibi"}, "position_encoding='alibi'"),
        ({"position_encoding": "sinusoidal"}, "position_encoding='sinusoidal'"),
        ({"norm_position": "post"}, "norm_position='post'"),
        ({"dropout": 0.1}, "dropout=0.1"),
        ({"variant": Variant(n_experts=4)}, "variant=Variant("),
        ({"variant": Variant(attention_softcap=5.0)}, "variant=Variant("),
    ],
)
def test_what_is_not_built_is_refused_by_name(change, words):
    config = GPTConfig(**TINY, **change)
    for build in (lambda: JaxGPT(config, nnx.Rngs(0)), lambda: from_torch(GPT(config))):
        with pytest.raises(ValueError) as refusal:
            build()
        said = str(refusal.value)
        assert said.startswith(words) and said.endswith(".") and len(said) <= 300


@pytest.mark.parametrize("dtype", [torch.float32, "float33", int])
def test_a_dtype_that_is_no_float_of_jax(dtype):
    with pytest.raises(ValueError) as refusal:
        load_jax(dtype=dtype)
    said = str(refusal.value)
    assert said == f"dtype={dtype!r} is no float of JAX: give jnp.float32 or another."


def test_a_run_cannot_be_a_file(model, tmp_path):
    place = tmp_path / "run"
    place.write_text("mine")
    with pytest.raises(FileExistsError, match="run is a file and no folder: give the run ano"):
        save_jax(place, 1, model)
    assert place.read_text() == "mine"


@pytest.mark.parametrize(
    "ids, documents, words",
    [
        ([[1, 2]], None, "ids must be an array, not a list: jnp.array(ids)"),
        (np.zeros(4, int), None, "ids must be whole numbers (B, T), not int"),
        (np.zeros((1, 0), int), None, "ids must be whole numbers (B, T), not int"),
        (np.zeros((1, 4)), None, "ids must be whole numbers (B, T), not float"),
        (np.zeros((1, 17), int), None, "17 tokens do not fit into max_seq_len=16"),
        (np.zeros((1, 4), int), np.zeros((1, 5), int), "document_ids are (1, 5) but ids are"),
    ],
)
def test_bad_input_is_told_in_a_sentence(model, ids, documents, words):
    with pytest.raises(ValueError) as refusal:
        model(ids, documents)
    assert str(refusal.value).startswith(words) and str(refusal.value).endswith(".")


def test_the_config_is_a_copy(model):
    "So a call compiled for it stays right."
    model.config.n_layers = 7
    assert model.config == CONFIGS["course"]
    assert hash(nnx.graphdef(model)) == hash(nnx.graphdef(from_torch(make_gpt(model.config))))
