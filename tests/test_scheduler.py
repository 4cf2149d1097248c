"The engine of many texts: each is what it would be alone, whoever comes, goes or is put back."

import random
from dataclasses import fields
from functools import cache

import torch

from llm_course.blocks import BlockPool
from llm_course.engine import SamplingParams
from llm_course.gpt import GPT
from llm_course.model_config import GPTConfig
from llm_course.sampling import generate
from llm_course.scheduler import Engine, Finished

V = 20
N_ROWS = 4
LENGTHS = (1, 2, 15, 16, 31, 32, 33, 47, 63, 64, 65, 80)  # around the ends of blocks and chunks
PARAMS = (
    SamplingParams(),
    SamplingParams(temperature=0),
    SamplingParams(temperature=0.7, top_k=5, stop_ids=(3,)),
    SamplingParams(top_p=0.8, repetition_penalty=1.3, stop_ids=(1, 2)),
    SamplingParams(min_p=0.05, presence_penalty=0.5, force_tokens=(7, 8), logit_bias={4: 1.0}),
)


def tiny(dtype=torch.float32, **changes):
    "A model of one layer, whose next token depends on all before it."
    torch.manual_seed(0)
    sizes = {"vocab_size": V, "max_seq_len": 96, "n_layers": 1, "n_heads": 2, "d_model": 16}
    model = GPT(GPTConfig(**(sizes | changes)))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model.to(dtype).eval()


def make_menu(rng, n=120):
    "Requests to choose from: prompts that begin alike, of lengths around the borders."
    texts = [[rng.randrange(V) for _ in range(96)] for _ in range(3)]
    menu = []
    for _ in range(n):
        length = rng.choice(LENGTHS)
        n_own = rng.choice((0, 0, 1, 20))  # at the end the prompt goes its own way
        prompt = rng.choice(texts)[:length]
        prompt[max(1, length - n_own) :] = [rng.randrange(V) for _ in prompt[max(1, length - n_own) :]]
        menu.append(
            {
                "ids": prompt,
                "max_new_tokens": rng.choice((0, 1, 2, 3, 5, 8, 14)),
                "params": rng.choice(PARAMS),
                "seed": rng.randrange(3),
                "top_logprobs": rng.choice((V, V, 2, None)),
                "prompt_logprobs": rng.random() < 0.15,
            }
        )
    return menu


def alone(engine, spec):
    "What an empty engine delivers."
    items = []
    engine.pool = BlockPool(engine.model.make_cache(1, 1).k, engine.pool.n_blocks)
    engine.submit(**spec, deliver=items.append)
    while engine.step():
        pass
    return items


def run_schedule(engine, seed, specs):
    "Requests join and leave at random; all that was delivered, for each the spec's number."
    rng = random.Random(seed)
    engine.pool = BlockPool(engine.model.make_cache(1, 1).k, rng.choice((6, 7, 9, 24)))
    todo = [rng.randrange(len(specs)) for _ in range(rng.choice((2, 3, 4, 6)))]
    if rng.random() < 0.3:
        todo = todo[:1] * len(todo)  # n texts for one prompt
    delivered = []
    requests = []
    while todo or engine.waiting or engine.running:
        if todo and rng.random() < 0.5:
            i = todo.pop()
            items = []
            delivered.append((i, items))
            requests.append(engine.submit(**specs[i], deliver=items.append))
            continue
        leaves = None
        if rng.random() < 0.03 and requests:
            leaves = rng.choice(requests)
            leaves.cancel()
        engine.step()
        assert leaves is None or leaves.finished  # its place is free after one step
    assert len(engine.pool.free) == engine.pool.n_blocks
    assert not any(engine.pool.n_holders)
    return delivered


def check_delivered(items, expected):
    "To the bit what was expected, or its beginning where the request was cancelled."
    *tokens, end = items
    *all_tokens, all_end = expected
    assert isinstance(end, Finished)
    assert end.error is None and end.n_prompt == all_end.n_prompt
    assert end.n_cached % 32 == 0 and end.n_cached < end.n_prompt
    if end.reason == "cancelled":
        assert tokens == all_tokens[: len(tokens)]
    else:
        assert tokens == all_tokens and end.reason == all_end.reason


def check_fixed(model, seeds):
    engine = Engine(model, N_ROWS)
    assert engine.invariant, engine.reason
    menu = make_menu(random.Random(0))
    expected = cache(lambda i: alone(engine, menu[i]))
    for seed in seeds:
        for i, items in run_schedule(engine, seed, menu):
            check_delivered(items, expected(i))
    return engine.counts


def check_free(model, seeds):
    engine = Engine(model, N_ROWS, fixed=False)
    menu = make_menu(random.Random(0))

    @cache
    def expected(i):
        spec = menu[i]
        generator = torch.Generator().manual_seed(spec["seed"])
        ids = []
        settings = {f.name: getattr(spec["params"], f.name) for f in fields(spec["params"])}
        for id in generate(model, spec["ids"], spec["max_new_tokens"], generator=generator, **settings):
            ids.append(id)
        return ids

    for seed in seeds:
        for i, items in run_schedule(engine, seed, menu):
            ids = [item.id for item in items if hasattr(item, "id")]
            whole = expected(i)
            assert ids == (whole[: len(ids)] if items[-1].reason == "cancelled" else whole)
    return engine.counts


def test_fixed_passes_give_each_text_the_bits_that_it_has_alone():
    import time; t=time.time()
    counts = check_fixed(tiny(), range(1000))
    print(counts, time.time()-t)


def test_free_passes_give_each_text_the_tokens_that_generate_gives():
    import time; t=time.time()
    counts = check_free(tiny(torch.float64), range(1000))
    print(counts, time.time()-t)
