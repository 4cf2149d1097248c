"""The encoder-decoder is the transformer of the paper, and writes with the course's own functions:
one source or many, with the cache as without, whatever stands in the padding."""

import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from llm_course.decoding import beam_search
from llm_course.encoder_decoder import CrossAttention, EncoderDecoder
from llm_course.engine import Decoder
from llm_course.heads import LayerContext
from llm_course.measure import evaluate
from llm_course.model_config import GPTConfig
from llm_course.optim import make_optimizer
from llm_course.reading import Reading, Source, pad_rows
from llm_course.retelling import PairBatch
from llm_course.settings import TrainConfig
from llm_course.throughput import find_lr, summed_loss
from llm_course.training import train
from llm_course.variants import Variant
from llm_course.writing import generate_batch, generate_tokens, next_logits

TINY = dict(vocab_size=40, max_seq_len=24, n_layers=2, n_heads=4, d_model=32, n_kv_heads=2)
PAPER = dict(
    n_kv_heads=None,
    d_ff=48,
    norm="layernorm",
    norm_position="post",
    mlp="relu",
    bias=True,
    qk_norm=False,
    position_encoding="sinusoidal",
)
SOURCES = [[5, 6, 7, 8, 9], [1, 2, 3], [4] * 8]
PROMPTS = [[1], [2, 3], [3]]


def make_model(seed=0, encoder=None, **changes):
    "A model with weights large enough that every part of it counts."
    torch.manual_seed(seed)
    config = GPTConfig(**TINY | changes)
    model = EncoderDecoder(config, None if encoder is None else GPTConfig(**TINY | encoder))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model.eval()


def random_ids(*shape, seed=0):
    return torch.randint(40, shape, generator=torch.Generator().manual_seed(seed))


# ours and PyTorch's names of one layer's weights; its `in_proj` holds q, k and v
LAYER = {
    "attention.qkv": "self_attn.in_proj_",
    "attention.out_proj": "self_attn.out_proj.",
    "mlp.up_proj": "linear1.",
    "mlp.down_proj": "linear2.",
    "attention_norm": "norm1.",
}
ENCODER_LAYER = LAYER | {"mlp_norm": "norm2."}
DECODER_LAYER = LAYER | {
    "cross_attention_norm": "norm2.",
    "cross_attention.out_proj": "multihead_attn.out_proj.",
    "mlp_norm": "norm3.",
}


def torch_weights(model):
    "The weights of an encoder-decoder, as torch.nn.Transformer names them."
    ours = model.state_dict()
    theirs = {}
    for kind, n in product(("weight", "bias"), range(len(model.blocks))):
        for name, other in ENCODER_LAYER.items():
            theirs[f"encoder.layers.{n}.{other}{kind}"] = ours[f"encoder_blocks.{n}.{name}.{kind}"]
        for name, other in DECODER_LAYER.items():
            theirs[f"decoder.layers.{n}.{other}{kind}"] = ours[f"blocks.{n}.{name}.{kind}"]
        cross = f"blocks.{n}.cross_attention."
        parts = (ours[f"{cross}q_proj.{kind}"], ours[f"{cross}kv_proj.{kind}"])
        theirs[f"decoder.layers.{n}.multihead_attn.in_proj_{kind}"] = torch.cat(parts)
        theirs[f"encoder.norm.{kind}"] = ours[f"encoder_norm.{kind}"]
        theirs[f"decoder.norm.{kind}"] = ours[f"final_norm.{kind}"]
    return theirs


def torch_logits(model, ids, source_ids, source_mask):
    "What torch.nn.Transformer says, with the same weights."
    config = model.config
    sizes = (config.d_model, config.n_heads, config.n_layers, config.n_layers, config.d_ff)
    pre = config.norm_position == "pre"
    theirs = nn.Transformer(*sizes, dropout=0.0, batch_first=True, norm_first=pre)
    theirs.load_state_dict(torch_weights(model))
    positions = torch.arange(24)
    source = model.embedding(source_ids)
    source = source + model.encoder_position_embedding(positions[: source_ids.shape[1]])
    x = model.embedding(ids) + model.position_embedding(positions[: ids.shape[1]])
    later = nn.Transformer.generate_square_subsequent_mask(ids.shape[1]).isinf()
    y = theirs(
        source,
        x,
        tgt_mask=later,
        src_key_padding_mask=~source_mask,
        memory_key_padding_mask=~source_mask,
    )
    return model.lm_head(y)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_it_is_the_transformer_of_torch(norm_position):
    model = make_model(**PAPER | dict(norm_position=norm_position))
    source_ids, source_mask = pad_rows(SOURCES)
    ids = random_ids(3, 7)
    expected = torch_logits(model, ids, source_ids, source_mask)
    assert expected.std() > 0.5
    assert_close(model(ids, source_ids, source_mask), expected, atol=1e-5, rtol=1e-5)


def test_its_gradients_are_those_of_torch():
    model = make_model(**PAPER)
    source_ids, source_mask = pad_rows(SOURCES)
    ids = random_ids(3, 7)
    ours = model(ids, source_ids, source_mask)
    theirs = torch_logits(model, ids, source_ids, source_mask)
    found, expected = (
        torch.autograd.grad(y.log_softmax(-1)[..., 3].sum(), model.embedding.weight)[0]
        for y in (ours, theirs)
    )
    assert_close(found, expected, atol=1e-4, rtol=1e-4)


class Distance(nn.Module):
    "A position bias that grows with the distance, otherwise in each head, and before and after."

    def forward(self, queries, keys):  # (..., T), (..., S) to (..., H, T, S)
        away = (queries[..., None, :, None] - keys[..., None, None, :]).float()
        return torch.linspace(-1, 1, 4)[:, None, None] * away.abs() + 0.3 * away


CHOICES = [
    *(dict(position_encoding=name) for name in ("rope", "learned", "sinusoidal", "none")),
    PAPER,
    dict(n_kv_heads=4, qk_norm=False, bias=True, mlp="swiglu", tie_embeddings=False),
    dict(d_head=6, logit_softcap=3.0, variant=Variant(n_experts=3), norm_position="post"),
]


def in_chunks(model, ids, source, sizes):
    cache = source.make_cache(len(ids))
    return torch.cat([source(part, cache=cache) for part in ids.split(sizes, dim=1)], dim=1)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("changes", CHOICES, ids=str)
def test_the_cache_changes_nothing(changes, biased):
    model = make_model(**changes)
    if biased:
        model.position_bias = Distance()
        model.encoder_position_bias = Distance()
    source_ids, source_mask = pad_rows(SOURCES)
    ids = random_ids(3, 12)
    whole = model(ids, source_ids, source_mask)
    reading = model.reading(source_ids, source_mask)
    for sizes in ([12], [5, 7], [4, 1, 1, 1, 5]):
        assert_close(in_chunks(model, ids, reading, sizes), whole, atol=1e-5, rtol=1e-5)
    if biased:  # and it says something
        model.position_bias = None
        assert (model(ids, source_ids, source_mask) - whole).abs().max() > 1e-2


@pytest.mark.parametrize("encoding", ["rope", "alibi"])
def test_the_decoder_may_have_windows(encoding):
    kind = dict(position_encoding=encoding, sliding_window=4)
    model = make_model(encoder={}, **kind)
    reading = model.reading(random_ids(2, 9))
    ids = random_ids(2, 20)
    whole = reading(ids)
    assert reading.make_cache(2).size == 4  # a ring
    sizes = [3, *[1] * 5, 12]
    assert_close(in_chunks(model, ids, reading, sizes), whole, atol=1e-5, rtol=1e-5)


def test_the_encoder_may_have_another_shape():
    encoder = dict(n_layers=1, n_heads=2, n_kv_heads=None, mlp="relu", max_seq_len=50)
    encoder |= dict(position_encoding="learned", norm_position="sandwich")
    model = make_model(encoder=encoder)
    assert len(model.encoder_blocks) == 1 and len(model.blocks) == 2
    assert model(random_ids(1, 5), random_ids(1, 50)).shape == (1, 5, 40)
    with pytest.raises(ValueError, match="51 tokens do not fit into max_seq_len=50"):
        model.read(random_ids(1, 51))


@pytest.mark.parametrize("changes", CHOICES, ids=str)
def test_padding_changes_nothing(changes):
    model = make_model(**changes).double()
    source_ids, source_mask = pad_rows(SOURCES)
    ids = random_ids(3, 6)
    whole = model(ids, source_ids, source_mask)
    for i, row in enumerate(SOURCES):
        alone = model(ids[i : i + 1], torch.tensor([row]))
        assert_close(alone[0], whole[i], atol=1e-9, rtol=1e-9)
    other = torch.where(source_mask, source_ids, random_ids(3, 8, seed=1))
    changed = model(ids, other, source_mask)
    assert_close(changed, whole, atol=1e-12, rtol=1e-12)
    if "variant" not in changes:  # experts see padding among their tokens
        assert torch.equal(changed, whole)  # to the bit
    more = nn.functional.pad(source_ids, (0, 5), value=11)
    more_mask = nn.functional.pad(source_mask, (0, 5))
    assert_close(model(ids, more, more_mask), whole, atol=1e-9, rtol=1e-9)
    single = model.float()  # and in float32, where sums round
    expected = whole.float()
    assert_close(single(ids, more, more_mask), expected, atol=1e-4, rtol=1e-5)


def test_the_encoder_looks_both_ways_and_the_decoder_does_not():
    model = make_model()
    source_ids = random_ids(1, 8)
    ids = random_ids(1, 8)
    encoded = model.encode(source_ids)
    logits = model(ids, source_ids)
    changed = source_ids.clone()
    changed[0, -1] += 1
    assert ((model.encode(changed) - encoded).abs().amax(-1) > 1e-3).all()
    assert ((model(ids, changed) - logits).abs().amax(-1) > 1e-3).all()
    later = ids.clone()
    later[0, 5:] = 0
    assert torch.equal(model(later, source_ids)[:, :5], logits[:, :5])


def greedy(model, source, prompt, n):
    "The likeliest text, read from the start at each step, without cache."
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]), torch.tensor([source]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_text_of_one_source():
    model = make_model()
    for source, prompt in zip(SOURCES, PROMPTS):
        reading = model.reading(torch.tensor([source]))
        expected = greedy(model, source, prompt, 8)
        tokens = list(generate_tokens(reading, prompt, 8, temperature=0))
        assert [token.id for token in tokens] == expected
        first = model(torch.tensor([prompt]), torch.tensor([source]))[0, -1]
        assert_close(next_logits(reading, prompt), first)
        assert math.isclose(tokens[0].log_prob, first.log_softmax(-1).max().item(), abs_tol=1e-5)
        assert beam_search(reading, prompt, 8, n_beams=1)[0].ids == expected
        many = generate_batch(reading, [prompt, prompt], 8, num_return_sequences=2, temperature=0)
        assert many == [expected] * 4


def test_several_sources_at_once_are_each_alone():
    "With texts that end at other times, that are written twice, and that outgrow the model."
    model = make_model()
    reading = model.reading(*pad_rows(SOURCES))
    single = [model.reading(torch.tensor([source])) for source in SOURCES]
    for n_each, stops in product((1, 2), ([], [7, 11, 13, 22, 33])):
        settings = dict(temperature=0, stop_ids=stops)
        together = generate_batch(reading, PROMPTS, 32, num_return_sequences=n_each, **settings)
        for i, (one, prompt) in enumerate(zip(single, PROMPTS)):
            alone = generate_batch(one, [prompt], 32, **settings)[0]
            assert together[n_each * i : n_each * (i + 1)] == [alone] * n_each
    assert len({tuple(text) for text in together}) == 3


def test_drawn_texts_are_those_of_each_alone():
    model = make_model()
    reading = model.reading(*pad_rows(SOURCES))
    seeds = [torch.Generator().manual_seed(i) for i in range(3)]
    together = generate_batch(reading, PROMPTS, 12, generator=seeds, stop_ids=[7, 11])
    for i, (source, prompt) in enumerate(zip(SOURCES, PROMPTS)):
        one = model.reading(torch.tensor([source]))
        seed = torch.Generator().manual_seed(i)
        alone = generate_tokens(one, prompt, 12, generator=seed, stop_ids=[7, 11])
        assert together[i] == [token.id for token in alone]


def test_rows_go_on_with_their_sources():
    model = make_model()
    reading = model.reading(*pad_rows(SOURCES))
    decoder = Decoder(reading, 3, 40)
    decoder.feed(PROMPTS)
    decoder.select([2, 0, 2])
    assert decoder.cache.origins == [2, 0, 2]
    logits = decoder.feed([[9]] * 3)
    texts = torch.tensor([[3, 9], [1, 9], [3, 9]])
    rows = [SOURCES[2], SOURCES[0], SOURCES[2]]
    assert_close(logits, model(texts, *pad_rows(rows))[:, -1], atol=1e-5, rtol=1e-5)
    decoder.feed([[8] * 20, [8], [8] * 25])  # two rows slide
    assert decoder.cache.origins == [2, 0, 2]
    seen = decoder.context[2]
    alone = next_logits(model.reading(torch.tensor([SOURCES[2]])), [*seen, 5])
    assert_close(decoder.feed([[5]] * 3)[2], alone, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="There are 3 sources, and a row that has none of them"):
        decoder.join([[1]])
    one = Decoder(model.reading(torch.tensor([SOURCES[1]])), 0, 40)
    one.join([[2, 3]])  # with one source it is known
    assert_close(one.join([[2, 3]]), one.join([[2, 3]]))


def test_the_source_is_read_once():
    model = make_model()
    n_read = []
    model.encoder_blocks[0].register_forward_hook(lambda *_: n_read.append(1))
    model.blocks[1].cross_attention.kv_proj.register_forward_hook(lambda *_: n_read.append(1))
    reading = model.reading(*pad_rows(SOURCES))
    generate_batch(reading, PROMPTS, 10, num_return_sequences=2)
    assert len(n_read) == 2 and isinstance(reading, Reading)


def all_texts(model, source, prompt, n, stop_id):
    "Every text of at most n ids that ends with the stop id, or has n ids, and its log-probability."
    found = {}
    for ids in product(range(model.config.vocab_size), repeat=n):
        text = ids[: ids.index(stop_id) + 1] if stop_id in ids else ids
        if text not in found:
            row = torch.tensor([[*prompt, *text]])
            log_probs = model(row, source)[0].log_softmax(-1)[len(prompt) - 1 : -1]
            found[text] = float(log_probs.gather(-1, torch.tensor(text)[:, None]).sum())
    return found


def test_beams_find_the_likeliest_text():
    model = make_model(vocab_size=5)
    source = torch.tensor([[3, 1, 4, 2]])
    found = beam_search(model.reading(source), [1], 3, n_beams=30, stop_ids=[0], length_penalty=0)
    with torch.no_grad():
        expected = all_texts(model, source, [1], 3, 0)
    assert math.isclose(found[0].log_prob, max(expected.values()), abs_tol=1e-4)
    for beam in found:
        text = tuple(beam.ids) if len(beam.ids) == 3 else (*beam.ids, 0)
        assert math.isclose(beam.log_prob, expected[text], abs_tol=1e-4)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_weights_are_those_it_mixes_with(qk_norm):
    torch.manual_seed(0)
    config = GPTConfig(**TINY | dict(qk_norm=qk_norm, bias=True))
    cross = CrossAttention(config).eval()
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])[:, None, None]
    k, v = cross.keys_and_values(torch.randn(2, 6, 32))
    x = torch.randn(2, 3, 32)
    context = LayerContext(source=Source((k,), (v,), mask))
    weights = cross.attention_weights(x, context)
    assert weights.shape == (2, 4, 3, 6)
    assert_close(weights.sum(-1), torch.ones(2, 4, 3))
    assert weights[0, :, :, 4:].abs().max() == 0
    mixed = weights @ v.repeat_interleave(2, dim=1)
    assert_close(cross(x, context), cross.out_proj(mixed.transpose(1, 2).flatten(2)))


def copy_batches(n):
    "Pairs whose target is the source."
    for seed in range(n):
        ids = random_ids(8, 5, seed=seed)
        mask = torch.ones_like(ids, dtype=torch.bool)
        targets = ids.clone()
        targets[0, -1] = -100
        yield PairBatch(nn.functional.pad(ids[:, :-1], (1, 0)), targets, ids, mask)


def test_training_takes_pairs():
    model = make_model()
    config = TrainConfig(max_steps=30, batch_size=8, warmup_steps=5)
    fixed = list(copy_batches(2))
    before = evaluate(model, fixed)
    records = list(train(model, copy_batches(30), config, valid=fixed))
    assert records[-1].valid_loss < before - 1
    assert math.isclose(evaluate(model, fixed), records[-1].valid_loss, rel_tol=1e-6)
    loss, n_targets = summed_loss(model, fixed[0])
    assert n_targets == 39
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert len(make_optimizer(model, config).param_groups) >= 2
    assert find_lr(model, copy_batches(40), config, highest=0.5, steps=20).suggestion > 0


def test_weights_are_shared_and_kept(tmp_path):
    model = make_model()
    assert model.lm_head.weight is model.embedding.weight
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    again = make_model(seed=1)
    again.load_state_dict(torch.load(tmp_path / "weights.pt"))
    ids = random_ids(2, 5)
    assert torch.equal(again(ids, ids), model(ids, ids))
    assert make_model(tie_embeddings=False).lm_head.weight is not model.embedding.weight


def test_reading_is_in_evaluation_mode_and_the_model_stays_as_it_was():
    model = make_model(dropout=0.5).train()
    source = torch.tensor([SOURCES[0]])
    reading = model.reading(source)
    texts = [generate_batch(reading, [[1]], 8, temperature=0) for _ in range(2)]
    assert texts[0] == texts[1] and model.training and model.blocks[0].training
    assert not torch.equal(model(source, source), model(source, source))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    model = make_model().to(dtype)
    reading = model.reading(*pad_rows(SOURCES))
    assert reading(random_ids(3, 4), cache=reading.make_cache(3)).dtype == dtype
    assert len(generate_batch(reading, PROMPTS, 4)) == 3


MISFITS = [
    (dict(vocab_size=41), "The decoder has vocab_size=40 and the encoder 41; both use one embedding"),
    (dict(d_model=16), "The decoder has d_model=32 and the encoder 16"),
    (dict(sliding_window=4), "An encoder looks both ways, so .*sliding_window=4 cannot be its"),
    (dict(position_encoding="alibi"), "position_encoding='alibi'"),
]


@pytest.mark.parametrize("encoder, message", MISFITS, ids=lambda x: str(x)[:30])
def test_configs_that_do_not_fit(encoder, message):
    with pytest.raises(ValueError, match=message):
        make_model(encoder=encoder)


def test_what_cross_attention_has_not():
    with pytest.raises(ValueError, match="norm_position 'sandwich' is not known.*'pre', 'post'"):
        make_model(norm_position="sandwich")
    with pytest.raises(ValueError, match="no attention_softcap=5.0"):
        make_model(variant=Variant(attention_softcap=5.0))


def test_input_that_does_not_fit():
    model = make_model()
    source_ids, source_mask = pad_rows(SOURCES)
    ids = random_ids(2, 4)
    with pytest.raises(ValueError, match="There are 3 sources and 2 texts"):
        model(ids, source_ids, source_mask)
    with pytest.raises(ValueError, match="source_mask must be bool and .3, 8. as source_ids, not"):
        model.read(source_ids, source_mask[:2])
    with pytest.raises(ValueError, match="not torch.int64"):
        model.read(source_ids, source_mask.long())
    with pytest.raises(ValueError, match="a row without text"):
        model.read(source_ids, torch.zeros_like(source_mask))
    with pytest.raises(ValueError, match="ids hold 40"):
        model.read(source_ids + 31)
    with pytest.raises(TypeError, match="ids must be a tensor, not list"):
        model.read(SOURCES)
    with pytest.raises(ValueError, match="give model.reading.source_ids."):
        generate_batch(model, [[1]], 3)
    with pytest.raises(ValueError, match="each text must be whole numbers from 0 to .*, not -1"):
        pad_rows([[1, -1]])
    assert torch.equal(model.reading([[5, 6]]).source.mask, torch.ones(1, 1, 1, 2) > 0)
    for rows in ([], [[1], []]):
        with pytest.raises(ValueError, match=f"There are {len(rows)} texts, the shortest with 0"):
            pad_rows(rows)
    assert torch.equal(model(ids, source_ids[:1]), model(ids, source_ids[:1].repeat(2, 1)))


def test_each_of_several_sources_has_a_text():
    "Which source is meant where one text is written, or four? It is not guessed."
    reading = make_model().reading(*pad_rows(SOURCES))
    writers = [
        lambda: beam_search(reading, [1], 3),
        lambda: next(generate_tokens(reading, [1], 3)),
        *(lambda n=n: generate_batch(reading, [[1]] * n, 3) for n in (1, 2, 4)),
    ]
    refusal = "There are 3 sources, and a row that has none of them: write 3 texts, .* one source for"
    for write in writers:
        with pytest.raises(ValueError, match=refusal):
            write()
    assert len(generate_batch(reading, PROMPTS, 3, num_return_sequences=2)) == 6


def test_positions_give_their_bias_once_a_pass():
    "And not once a layer."
    model = make_model()
    n_asked = []
    for name in ("position_bias", "encoder_position_bias"):
        bias = Distance()
        bias.register_forward_hook(lambda *_, name=name: n_asked.append(name))
        setattr(model, name, bias)
    model(random_ids(1, 5), random_ids(1, 7))
    assert len(model.blocks) == 2 and sorted(n_asked) == ["encoder_position_bias", "position_bias"]


def test_reading_draws_nothing():
    model = make_model()
    state = torch.get_rng_state()
    first, second = (model.reading(torch.tensor([SOURCES[0]])).source for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.k + first.v, second.k + second.v))
