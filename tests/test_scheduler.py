"The engine of many texts: each is what it would be alone, whoever comes, goes or is put back."

import random
import threading
from dataclasses import fields
from functools import cache

import pytest
import torch

from llm_course.batching import Engine
from llm_course.blocks import BLOCK, BlockPool, n_blocks_for
from llm_course.checkpoint import load_model
from llm_course.engine import SamplingParams
from llm_course.fast import optimize_for_decoding
from llm_course.gpt import GPT
from llm_course.model_config import GPTConfig
from llm_course.passes import CHUNK, Finished, QueueFull
from llm_course.variants import Variant
from llm_course.writing import generate_tokens

V = 20
LONGEST = 80
LENGTHS = (1, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 65)  # around the ends of blocks and chunks
PARAMS = (
    SamplingParams(),
    SamplingParams(temperature=0),
    SamplingParams(temperature=0.7, top_k=5, stop_ids=(3,)),
    SamplingParams(top_p=0.8, repetition_penalty=1.3, stop_ids=(1, 2)),
    SamplingParams(min_p=0.05, presence_penalty=0.5, force_tokens=(7, 8), logit_bias={4: 1.0}),
)


def tiny(dtype=torch.float32, **changes):
    "A model of one layer, with weights so large that each token depends on all before it."
    torch.manual_seed(0)
    sizes = {"vocab_size": V, "max_seq_len": LONGEST, "n_layers": 1, "n_heads": 2, "d_model": 16}
    model = GPT(GPTConfig(**(sizes | changes)))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model.to(dtype).eval()


def empty(engine, n_blocks):
    "The engine with a new pool."
    engine.pool = BlockPool(engine.model.make_cache(1, 1).k, n_blocks)
    engine.passes.pool = engine.memory.pool = engine.pool
    return engine


def alone(engine, spec):
    "What an empty engine delivers of one request."
    items = []
    empty(engine, LONGEST // BLOCK).write(**spec, deliver=items.append)
    return items


def new_tokens(items):
    "The ids that were written, of what was delivered."
    return [item.id for item in items if hasattr(item, "log_prob")]


def make_menu(engine, n):
    """Requests to choose from: prompts that begin alike, or have the same block elsewhere; then
    prompts that go on where others ended, as the next turn of a conversation does."""
    rng = random.Random(0)
    texts = [[rng.randrange(V) for _ in range(LONGEST)] for _ in range(3)]
    texts[1][16:64] = texts[0][16:64]
    texts[2][32:64] = texts[0][32:64]
    menu = []
    for i in range(2 * n):
        length = rng.choice(LENGTHS)
        prompt = rng.choice(texts)[:length]
        if i >= n:
            before = menu[i - n]
            prompt = before["ids"] + new_tokens(alone(engine, before)) + prompt[: rng.choice((0, 1, 20))]
        menu.append(
            {
                "ids": prompt[: LONGEST - 12],
                "max_new_tokens": rng.choice((0, 1, 2, 3, 4, 6, 12)),
                "params": rng.choice(PARAMS),
                "seed": rng.randrange(3),
                "top_logprobs": rng.choice((V, V, 2, None)),
                "prompt_logprobs": rng.random() < 0.1,
            }
        )
    return menu


def run_schedule(engine, menu, seed):
    "Requests join and leave at random: all that was delivered, each with its number in the menu."
    rng = random.Random(seed)
    half = len(menu) // 2
    todo = rng.choices(range(len(menu)), k=rng.choice((2, 3, 3, 5)))
    if rng.random() < 0.6:  # else go on with what is in the pool
        fitting = sum(n_blocks_for(len(menu[i]["ids"])) for i in todo[-2:])
        empty(engine, rng.choice((max(LONGEST // BLOCK, fitting), 20)))  # blocks are few, or many
    if rng.random() < 0.2:
        todo = todo[:1] * len(todo)  # n texts for one prompt
    elif rng.random() < 0.3:
        todo = [i % half + half for i in todo[:2]] + [i % half for i in todo[:2]]  # and what follows
    delivered = []
    requests = []
    busy = True
    while todo or busy:
        if todo and rng.random() < 0.5:
            items = []
            delivered.append((todo.pop(), items))
            requests.append(engine.submit(**menu[delivered[-1][0]], deliver=items.append))
        leaving = requests and rng.random() < 0.03
        if leaving:
            leaver = rng.choice(requests)
            leaver.cancel()
        if engine.queue.running and rng.random() < 0.03:
            engine.scheduler.preempt(engine.queue.running[-1])  # as where blocks have run out
        busy = engine.step()
        assert not leaving or leaver.finished  # within one step
        order = [requests.index(request) for request in (*engine.queue.running, *engine.queue.waiting)]
        assert order == sorted(order)  # first come, first served
    assert len(engine.pool.free) == engine.pool.n_blocks  # nothing is held for ever
    assert not any(engine.pool.n_holders)
    return delivered


def same_or_cut(items, expected, n_prompt):
    "Whether these are the expected items to the last bit, or their beginning if cancelled."
    *tokens, end = items
    assert isinstance(end, Finished) and end.error is None
    assert end.n_prompt == n_prompt and end.n_cached in range(0, n_prompt, CHUNK)
    if end.reason == "cancelled":
        return tokens == expected[: len(tokens)]
    return [*tokens, end.reason] == [*expected[:-1], expected[-1].reason]


def check_fixed(model, seeds, n_rows=4, n=60):
    "Fixed passes: every number that is delivered equals that of the engine with one request."
    engine = Engine(model, n_rows)
    assert engine.invariant, engine.reason
    menu = make_menu(engine, n)
    expected = cache(lambda i: alone(engine, menu[i]))
    for seed in seeds:
        for i, items in run_schedule(engine, menu, seed):
            assert same_or_cut(items, expected(i), len(menu[i]["ids"])), (seed, menu[i])
    return engine.counts


def check_free(model, seeds, n=60):
    "Passes of any shape, in float64: every token is that of `generate_tokens` alone."
    engine = Engine(model, 4, fixed=False)
    menu = make_menu(engine, n)

    @cache
    def expected(i):
        spec = menu[i]
        params = {field.name: getattr(spec["params"], field.name) for field in fields(SamplingParams)}
        params["generator"] = torch.Generator().manual_seed(spec["seed"])
        tokens = list(generate_tokens(model, spec["ids"], spec["max_new_tokens"], **params))
        return [token.id for token in tokens]

    for seed in seeds:
        for i, items in run_schedule(engine, menu, seed):
            ids = new_tokens(items)
            is_cut = items[-1].reason == "cancelled"
            assert ids == expected(i)[: len(ids) if is_cut else None], (seed, menu[i])
    return engine.counts


@pytest.fixture
def one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.mark.parametrize("part", range(2))
def test_in_fixed_passes_each_text_has_the_bits_that_it_has_alone(one_thread, part):
    counts = check_fixed(tiny(), range(500 * part, 500 * part + 500))
    assert counts["preemptions"] > 100 and counts["tokens_cached"] > 5000


@pytest.mark.parametrize("part", range(2))
def test_in_free_passes_each_text_has_the_tokens_that_it_has_alone(one_thread, part):
    counts = check_free(tiny(torch.float64), range(500 * part, 500 * part + 500))
    assert counts["preemptions"] > 100 and counts["tokens_cached"] > 5000


def test_two_layers(one_thread):
    "In one layer keys and values depend on nothing before them: in two a wrong block shows."
    check_fixed(tiny(n_layers=2), range(100))


@pytest.mark.slow
def test_many_more_schedules(one_thread):
    check_fixed(tiny(), range(1000, 6000))
    check_free(tiny(torch.float64), range(1000, 6000))


KINDS = {
    "grouped heads": {"n_kv_heads": 1},
    "windows": {"n_layers": 2, "sliding_window": 20},
    "windows in some layers": {
        "n_layers": 2,
        "sliding_window": 20,
        "variant": Variant(window_pattern="SL", rope_pattern="RN"),
    },
    "alibi": {"position_encoding": "alibi"},
    "learned": {"position_encoding": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True},
    "sandwich": {"norm_position": "sandwich", "mlp": "swiglu", "tie_embeddings": False},
    "soft caps": {"logit_softcap": 5.0, "variant": Variant(attention_softcap=5.0)},
    "experts": {"variant": Variant(n_experts=3)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model(one_thread, kind):
    check_free(tiny(torch.float64, **KINDS[kind]), range(8), n=4)
    if kind == "experts":  # how many tokens an expert gets depends on the others
        engine = Engine(tiny(**KINDS[kind]))
        assert engine.invariant or "depend" in engine.reason
    else:
        check_fixed(tiny(**KINDS[kind]), range(8), n=4)


@pytest.mark.parametrize("n_rows", (1, 2, 5, 9))
def test_a_model_with_faster_parts_and_any_number_of_rows(one_thread, n_rows):
    check_fixed(optimize_for_decoding(tiny(mlp="swiglu")), range(4), n_rows, n=4)


def test_with_two_threads_the_bundled_model_writes_each_story_as_if_alone():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model, tokenizer = load_model()
        engine = Engine(model, n_rows=4)
        assert engine.invariant, engine.reason
        start = {"ids": [tokenizer.eos_id], "max_new_tokens": 40, "top_logprobs": 1024}
        expected = [alone(engine, {**start, "seed": seed}) for seed in range(2)]
        items = [[] for _ in range(8)]
        empty(engine, 17)  # of 24 that four stories need
        for i, received in enumerate(items):
            engine.submit(**start, seed=i % 2, deliver=received.append)
            engine.step()
        while engine.step():
            pass
        assert engine.counts["preemptions"] == 0
        assert all(received == expected[i % 2] for i, received in enumerate(items))
    finally:
        torch.set_num_threads(n_threads)


def test_the_youngest_is_put_back_and_then_goes_on_as_if_nothing_had_been():
    engine = Engine(tiny(), 4)
    specs = [{"ids": [i] * 30, "max_new_tokens": 40, "seed": i} for i in range(4)]
    expected = [alone(engine, spec) for spec in specs]
    empty(engine, 9)  # four prompts need 8, and four texts 20
    items = [[] for _ in specs]
    requests = [engine.submit(**spec, deliver=one.append) for spec, one in zip(specs, items)]
    while engine.step():
        finished = [request.finished is not None for request in requests]
        assert finished == sorted(finished, reverse=True)  # the oldest always gets on
    assert engine.counts["preemptions"] >= 3
    assert items == expected


class Failing(GPT):
    "A model that cannot read the token 7."

    def forward(self, ids, *args, **options):
        if (ids == 7).any():
            raise RuntimeError("no sevens, please")
        return super().forward(ids, *args, **options)


def test_an_error_ends_the_request_that_makes_it_and_no_other():
    model = tiny()
    engine = Engine(model, 4)
    specs = [{"ids": [i, 2, 3], "max_new_tokens": 20, "seed": i} for i in (4, 5, 7, 8)]
    for spec in specs:
        spec["params"] = SamplingParams(suppress_tokens=(7,))
    expected = [alone(engine, spec) for spec in specs]
    model.__class__ = Failing
    items = [[] for _ in specs]
    for spec, received in zip(specs, items):
        engine.submit(**spec, deliver=received.append)
    while engine.step():
        pass
    assert items[2] == [items[2][0]] and items[2][0].reason == "error"
    assert str(items[2][0].error) == "no sevens, please"
    del items[2], expected[2]
    assert items == expected
    with pytest.raises(RuntimeError, match="no sevens"):
        engine.write([7], 1)


def test_numbers_that_are_none_do_not_spread_to_others():
    model = tiny(tie_embeddings=False)
    engine = Engine(model, 2)
    spec = {"ids": [1, 2, 3] * 12, "max_new_tokens": 20, "seed": 0}
    spec["params"] = SamplingParams(suppress_tokens=(7,))
    expected = alone(engine, spec)
    with torch.no_grad():
        model.embedding.weight[7] = torch.nan
    empty(engine, 5)
    received = [[] for _ in range(3)]
    for items, ids in zip(received, ([7] * 40, spec["ids"], spec["ids"])):
        engine.submit(**{**spec, "ids": ids}, deliver=items.append)
    while engine.step():
        pass
    assert isinstance(received[0][-1].error, ValueError)
    assert received[1:] == [expected, [*expected[:-1], received[2][-1]]]


def test_who_no_longer_listens_is_cancelled():
    engine = Engine(tiny(), 2)

    def closed(item):
        raise ConnectionError("nobody is there")

    request = engine.submit([1], 20, deliver=closed)
    other = engine.submit([1], 20, seed=0)
    while engine.step():
        pass
    assert request.finished.reason == "cancelled" and request.n_written == 1
    assert other.finished.reason == "length" and other.n_written == 20


def test_a_thread_serves_many_others_and_ends_what_runs():
    engine = Engine(tiny(), 4, max_waiting=100)
    specs = [{"ids": [i % 5, 1], "max_new_tokens": 10, "seed": i} for i in range(20)]
    expected = [alone(engine, spec)[:-1] for spec in specs]
    empty(engine, 20)
    engine.start()
    items = [[] for _ in specs]

    def client(spec, received):
        engine.submit(**spec, deliver=received.append)

    threads = [threading.Thread(target=client, args=pair) for pair in zip(specs, items)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.stop(30)
    assert [received[:-1] for received in items] == expected
    assert all(received[-1].reason == "length" for received in items)
    with pytest.raises(QueueFull):
        engine.submit([1], 1)


def test_stop_cancels_what_takes_too_long():
    engine = Engine(tiny(), 1)
    requests = [engine.submit([1], 79) for _ in range(30)]
    engine.start()
    engine.stop(0.001)
    reasons = [request.finished.reason for request in requests]
    assert set(reasons) <= {"length", "cancelled"} and reasons[-1] == "cancelled"
    assert engine.counts["running"] == engine.counts["waiting"] == 0


def test_a_second_prompt_with_the_same_beginning_reads_the_rest_alone():
    engine = Engine(tiny(), 2)
    first = list(range(V)) * 3
    engine.write([*first, 1], 1)
    read = engine.counts["tokens_read"]
    items = []
    engine.submit([*first[:-2], 5, 6, 7], 1, deliver=items.append)
    while engine.step():
        pass
    assert items[-1].n_cached == 32 and engine.counts["tokens_read"] == read + 61 - 32


WRONG = {
    "empty": ([], 1, {}),
    "vocabulary": ([V], 1, {}),
    "max_new_tokens": ([1], -1, {}),
    "together": ([1], LONGEST, {}),
    "top_logprobs": ([1], 1, {"top_logprobs": -1}),
    "stop_ids": ([1], 1, {"params": SamplingParams(stop_ids=[V])}),
}


@pytest.mark.parametrize("word", WRONG)
def test_wrong_arguments_are_refused_in_a_sentence(word):
    ids, max_new_tokens, options = WRONG[word]
    with pytest.raises(ValueError) as told:
        Engine(tiny(), 1).submit(ids, max_new_tokens, **options)
    message = str(told.value)
    assert message.endswith(".") and len(message) <= 300
    assert word in message or "whole numbers from 0 to" in message


def test_too_few_blocks_and_a_full_queue_are_refused():
    with pytest.raises(ValueError, match="n_blocks=4"):
        Engine(tiny(), n_blocks=4)
    engine = Engine(tiny(), 1, max_waiting=2)
    engine.submit([1], 1)
    engine.submit([1], 1)
    with pytest.raises(QueueFull, match="2 requests wait"):
        engine.submit([1], 1)
