"Writing in JAX: the ids of `generate_batch`, the distribution of `sampling_logits`, few programs."

from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from numpy.testing import assert_allclose

from llm_course import jax_sampling
from llm_course.engine import SamplingParams, sampling_logits
from llm_course.gpt import GPT
from llm_course.jax_gpt import from_torch
from llm_course.jax_sampling import (
    Rules,
    candidates,
    draw_next,
    empty_jax_cache,
    feed,
    generate_jax,
)
from llm_course.model_config import GPTConfig
from llm_course.writing import generate_batch

SHAPES = {
    "rope, grouped heads, a window": dict(
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        mlp="swiglu",
        sliding_window=5,
        tie_embeddings=False,
    ),
    "learned positions": dict(
        position_encoding="learned", norm="layernorm", mlp="gelu", bias=True, qk_norm=False
    ),
}
PROMPTS = [[5, 3, 8, 1, 9, 2, 7], [4], [6, 6, 2]]


def models(seed=0, **changes):
    "A tiny model in PyTorch, whose logits are far from flat, and the same in JAX."
    torch.manual_seed(seed)
    config = GPTConfig(
        **dict(vocab_size=32, max_seq_len=40, n_layers=1, n_heads=2, d_model=16) | changes
    )
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model, from_torch(model)


@pytest.fixture(scope="module")
def plain():
    return models()


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_greedy_texts_are_those_of_generate_batch(changes):
    ours, in_jax = models(**changes)
    expected = generate_batch(ours, PROMPTS, 33, temperature=0)  # 7 + 33 fill max_seq_len
    assert generate_jax(in_jax, PROMPTS, 33, temperature=0) == expected


def test_with_the_cache_as_without():
    _, model = models(**SHAPES["rope, grouped heads, a window"])
    ids = np.random.default_rng(0).integers(0, 32, (2, 12))
    whole = nnx.jit(lambda model, ids: model(ids))(model, ids)
    read = nnx.jit(feed)
    cache = empty_jax_cache(model, 2, 16)
    found, cache = read(model, cache, ids[:, :4], np.array([4, 2]))  # the second has 2 of padding
    assert_allclose(found[0], whole[0, 3], atol=1e-5)
    assert_allclose(found[1], whole[1, 1], atol=1e-5)
    for step in range(8):
        places = np.array([4, 2]) + step
        found, cache = read(model, cache, ids[[0, 1], places][:, None])
        assert_allclose(found, whole[np.arange(2), places], atol=1e-5)
    assert cache.lengths.tolist() == [12, 10]


GRID = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 500, "top_p": 0.3},
    {"top_p": 1e-6},
    {"min_p": 0.0},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"top_k": 7, "top_p": 0.6, "min_p": 0.05},
]


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_the_rules_are_those_of_sampling_logits(temperature):
    logits = np.random.default_rng(0).normal(0, 2, (6, 150)).astype("float32")
    logits[0] = 0.5           # all equal: the lower ids stay
    logits[1, ::2] = -np.inf  # cut before
    logits[2] += 1e4
    for settings in GRID:
        kept, ids = candidates(jnp.array(logits), Rules(temperature, **settings))
        found = np.zeros_like(logits)
        np.put_along_axis(found, np.array(ids), np.array(jax.nn.softmax(kept)), -1)
        params = SamplingParams(temperature, **settings)
        wanted = sampling_logits(torch.tensor(logits), params).softmax(-1).numpy()
        assert_allclose(found, wanted, atol=1e-6, err_msg=str(settings))
        assert ((found > 1e-30) == (wanted > 1e-30)).all(), settings


def test_draws_follow_the_distribution():
    logits = np.random.default_rng(1).normal(0, 2, 40).astype("float32")
    n = 40_000
    keys = jax.random.split(jax.random.key(3), n)
    settings = {"top_k": 10, "top_p": 0.8}
    rows = np.broadcast_to(logits, (n, 40))
    drawn = jax.jit(draw_next)(keys, rows, Rules(1.3, **settings))
    params = SamplingParams(1.3, **settings)
    probs = sampling_logits(torch.tensor(logits), params).softmax(-1).numpy()
    shares = np.bincount(drawn, minlength=40) / n
    assert (shares[probs == 0] == 0).all() and (probs == 0).sum() > 30
    assert_allclose(shares, probs, atol=5 * 0.5 / n**0.5)


def test_a_key_is_an_address(plain):
    _, model = plain
    key = jax.random.key(7)
    texts = generate_jax(model, PROMPTS, 12, key)
    assert generate_jax(model, PROMPTS, 12, key) == texts
    assert generate_jax(model, PROMPTS, 12, jax.random.key(8)) != texts
    others = generate_jax(model, [PROMPTS[0], [1, 2], [3]], 12, key)
    assert others[0] == texts[0]  # in other company


def test_numbers_make_no_new_program(plain):
    _, model = plain
    with patch.object(jax_sampling, "feed", wraps=feed) as traced:

        def programs(prompts, **options):
            "How often Python came into `feed`: to trace a program, not to run one."
            before = traced.call_count
            generate_jax(model, prompts, 13, jax.random.key(0), **options)
            return traced.call_count - before

        assert programs(PROMPTS) > 0
        assert programs([[1] * 16, [2], [3]], temperature=0.3) == 0  # up to 16 ids, one shape
        assert programs(PROMPTS, temperature=1, top_p=1, min_p=0) == 0  # no rule cuts anything
        assert programs(PROMPTS, min_p=0.1) > 0  # one more rule


def test_a_stop_id_ends_a_text(plain):
    ours, model = plain
    whole = generate_jax(model, PROMPTS, 12, temperature=0)
    stop = whole[0][3]
    found = generate_jax(model, PROMPTS, 12, temperature=0, stop_ids=[stop])
    assert found == generate_batch(ours, PROMPTS, 12, temperature=0, stop_ids=[stop])
    assert len(found[0]) <= 3
    assert generate_jax(model, [], 12, temperature=0) == []


def test_sixteen_bits():
    model = from_torch(models()[0], jnp.bfloat16)
    assert empty_jax_cache(model, 1, 4).layers[0][0].dtype == jnp.bfloat16
    (text,) = generate_jax(model, [[1, 2]], 6, temperature=0)
    assert len(text) == 6 and max(text) < 32


@pytest.mark.parametrize(
    "prompts, options, why",
    [
        ([[1]], {}, "needs a key, for example"),
        ([[1]], {"key": 42}, "needs a key, for example .*, not 42"),
        ([[1]], {"temperature": -0.5}, "temperature must be a finite number of at least 0"),
        ([[1]], {"top_k": 0}, "top_k must be a whole number of at least 1"),
        ([[1]], {"top_p": 1.5}, "top_p must be above 0"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1"),
        ([[1] * 30], {"max_new_tokens": 11}, "41 tokens do not fit into max_seq_len=40"),
        ([[]], {}, "ids is empty"),
        ([[32]], {}, "ids must be whole numbers from 0 to 31, not 32"),
    ],
)
def test_refusals(plain, prompts, options, why):
    with pytest.raises(ValueError, match=why) as caught:
        generate_jax(plain[1], prompts, **{"max_new_tokens": 4} | options)
    assert len(str(caught.value)) <= 300 and str(caught.value).endswith(".")
