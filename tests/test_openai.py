"""OpenAI's API: every field of its clients is decided about, and each text is what it would be alone."""

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import openai
import pytest
import torch
import uvicorn
from openai.types import chat as chats
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.chat.chat_completion_content_part_param import File
from pydantic import ValidationError

from llm_course import generate_text, load_model
from llm_course.batching import Engine
from llm_course.engine import SamplingParams
from llm_course.guard import Limits
from llm_course.openai import Served, make_app
from llm_course.passes import Finished
from llm_course.schema import (
    ASKS_NOTHING,
    REFUSED,
    ApiError,
    ChatRequest,
    CompletionRequest,
    Message,
    StreamOptions,
    TextPart,
    refusal,
)
from llm_course.writing import GeneratedToken, generate_tokens, prompt_ids

MARK = "Zyx7"  # stands in what is refused, and never in the refusal


@contextmanager
def serving(engine, model, tokenizer, limits=None):
    "A server of its own thread on a free port: its address."
    served = Served("tales", model, tokenizer, engine, 1, True, "fp_1")
    app = make_app(SimpleNamespace(current=served), limits or Limits())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def model_and_tokenizer():
    torch.set_num_threads(1)
    return load_model()


@pytest.fixture(scope="module")
def engine(model_and_tokenizer):
    engine = Engine(model_and_tokenizer[0], n_rows=4, max_waiting=8)
    engine.start()
    yield engine
    engine.stop(1)


@pytest.fixture(scope="module")
def address(engine, model_and_tokenizer):
    with serving(engine, *model_and_tokenizer) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=address, api_key="none", max_retries=0)


def complete(client, **asked):
    return client.completions.create(**{"model": "tales", "prompt": "Anna had"} | asked)


def chat(client, **asked):
    said = {"model": "tales", "messages": [{"role": "user", "content": "Hello!"}]}
    return client.chat.completions.create(**said | asked)


def until(condition, seconds=10):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.002)


# Every field of OpenAI's own types is obeyed, refused by its name, or asks nothing of the text.
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MESSAGES = [getattr(chats, f"ChatCompletion{role.title()}MessageParam") for role in ROLES]
PARTS = [
    chats.ChatCompletionContentPartTextParam,
    chats.ChatCompletionContentPartImageParam,
    chats.ChatCompletionContentPartInputAudioParam,
    chats.ChatCompletionContentPartRefusalParam,
    File,
]
OFFICIAL = [
    (CompletionRequest, [text_params.CompletionCreateParamsStreaming]),
    (ChatRequest, [chat_params.CompletionCreateParamsStreaming]),
    (StreamOptions, [chats.ChatCompletionStreamOptionsParam]),
    (Message, MESSAGES),
    (TextPart, PARTS),
]
OURS = {"top_k", "min_p", "repetition_penalty"}


@pytest.mark.parametrize("ours, theirs", OFFICIAL, ids=lambda one: getattr(one, "__name__", ""))
def test_every_field_is_decided_about(ours, theirs):
    official = {name for one in theirs for name in one.__annotations__}
    assert official - set(ours.model_fields) <= set(REFUSED)
    assert not set(ours.model_fields) & set(REFUSED)
    extra = OURS | {*ASKS_NOTHING} if "model" in ours.model_fields else set()
    extra |= {"answer_ids"} if ours is ChatRequest else set()
    assert set(ours.model_fields) <= official | extra


def test_no_message_and_no_part_is_unknown():
    "A new kind of message or part of a newer client must be decided about, too."
    union = chats.ChatCompletionMessageParam.__args__
    assert {one.__name__ for one in union} == {one.__name__ for one in MESSAGES}
    parts = {one.__name__ for one in chats.ChatCompletionContentPartParam.__args__}
    assert parts < {one.__name__ for one in PARTS}
    official = {name for _, theirs in OFFICIAL for one in theirs for name in one.__annotations__}
    assert set(REFUSED) <= official


def told(kind, body):
    "The refusal of a body, as the clients get it."
    with pytest.raises((ApiError, ValidationError)) as caught:
        kind.model_validate(body)
    error = caught.value
    return (error if isinstance(error, ApiError) else refusal(error.errors())).body["error"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_field_is_named(name):
    bodies = [
        (CompletionRequest, lambda field: {"model": "tales"} | field),
        (Message, lambda field: {"role": "user", "content": "a"} | field),
        (TextPart, lambda field: {"type": "text", "text": "a"} | field),
    ]
    for kind, body in bodies:
        for value in (None, *REFUSED[name]):
            kind.model_validate(body({name: value}))
        for value in (MARK, 2, 1.5, {"a": MARK}, [MARK], {"type": "json_object"}):
            assert told(kind, body({name: value})) == {
                "message": f"{name} is refused: it cannot be had here, so leave it out.",
                "type": "invalid_request_error",
                "param": name,
                "code": None,
            }


def test_a_wrong_number_of_items_is_told():
    "And not that a text would have been right, too."
    five = told(CompletionRequest, {"model": "tales", "stop": ["a"] * 5})
    assert five["message"] == "stop must have at most 4 items, not 5."
    none = told(CompletionRequest, {"model": "tales", "prompt": []})
    assert none["message"] == "prompt must have at least 1 item, not 0."


WRONG = [  # a piece of JSON, and the field that is named
    ('"model": 5', "model"),
    ('"model": null', "model"),
    ('"prompt": {"a": "Zyx7"}', "prompt"),
    ('"prompt": []', "prompt"),
    ('"prompt": ["Zyx7", 5]', "prompt"),
    ('"prompt": [true]', "prompt"),
    ('"prompt": [1.5]', "prompt"),
    ('"prompt": [-1]', "prompt"),
    ('"prompt": [99999999999999999999]', "prompt"),
    ('"prompt": [100000]', "prompt"),
    ('"prompt": "\\ud800Zyx7"', "prompt"),
    ('"temperature": NaN', "temperature"),
    ('"temperature": 1e999', "temperature"),
    ('"temperature": -1', "temperature"),
    ('"temperature": 2.1', "temperature"),
    ('"temperature": true', "temperature"),
    ('"temperature": "0.777"', "temperature"),
    (f'"temperature": {"9" * 400}', "temperature"),
    ('"top_p": 1.1', "top_p"),
    ('"top_k": 0', "top_k"),
    ('"min_p": -0.1', "min_p"),
    ('"repetition_penalty": 0', "repetition_penalty"),
    ('"presence_penalty": 2.5', "presence_penalty"),
    ('"frequency_penalty": -2.5', "frequency_penalty"),
    ('"logit_bias": {"Zyx7": 1}', "logit_bias"),
    ('"logit_bias": {"1": 101}', "logit_bias"),
    ('"logit_bias": {"\\ud800": 1}', "logit_bias"),
    ('"logit_bias": {"99999": 1}', "logit_bias"),
    ('"logprobs": 6', "logprobs"),
    ('"logprobs": true', "logprobs"),
    ('"n": 0', "n"),
    ('"n": 17', "n"),
    ('"n": 1.0', "n"),
    ('"seed": 99999999999999999999', "seed"),
    (f'"seed": {"9" * 4000}', "seed"),
    ('"stop": ""', "stop"),
    ('"stop": ["a", "b", "c", "d", "Zyx7"]', "stop"),
    ('"stop": [1]', "stop"),
    ('"stop": "\\udc00"', "stop"),
    ('"stream": 1', "stream"),
    ('"stream_options": {"include_usage": true}', "stream_options"),
    ('"stream": true, "stream_options": {"include_usage": "Zyx7"}', "stream_options"),
    ('"stream": true, "stream_options": {"Zyx": 1}', None),
    ('"max_tokens": -1', "max_tokens"),
    ('"max_tokens": 1000', "max_tokens"),
    ('"echo": 1', "echo"),
    ('"user": 5', "user"),
    ('"metadata": {"a": 5}', "metadata"),
    ('"max_completion_tokens": 5', "max_completion_tokens"),
    ('"unheard_of": null', "unheard_of"),
    ('"\\ud800": 1', None),
    ('"Zyx7 is no plain name": 1', None),
]


@pytest.mark.parametrize("piece, name", WRONG)
def test_a_wrong_value_is_refused_without_an_echo(address, piece, name):
    piece = piece if '"model"' in piece else f'"model": "tales", {piece}'
    refused = post(address, f"{{{piece}}}")
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["param"] or "").split(".")[0] == (name or "")
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".") and len(error["message"]) <= 300
    for value in (MARK, "0.777", "9999", "100000"):
        assert value not in refused.text


def post(address, text, path="/completions"):
    headers = {"content-type": "application/json"}
    return httpx.post(address + path, content=text, headers=headers, timeout=30)


@pytest.mark.parametrize("text", ["", "{", "[]", '"Zyx7"', "[" * 100_000, '{"model": "tales"'])
def test_what_is_no_json_object_is_refused(address, text):
    for path in ("/completions", "/chat/completions"):
        refused = post(address, text, path)
        assert refused.status_code == 400 and MARK not in refused.text


TOLD = [  # messages, or another field of a chat, and the field that is named
    ({"messages": []}, "messages"),
    ({"messages": "Zyx7"}, "messages"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "a", "name": "Zyx7"}]}, "name"),
    ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [1]}]}, "tool_calls"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "image_url",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "Zyx7", "text": "a"}]}]},
        "messages.0.content.0.type",
    ),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 2}, "logprobs"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    ({"prompt": "Zyx7"}, "prompt"),
    ({"echo": True}, "echo"),
    ({"answer_ids": []}, "answer_ids"),
    ({"answer_ids": ["Zyx7"]}, "answer_ids.0"),
    ({"answer_ids": [5, 1023]}, "answer_ids"),  # end-of-text, a special token
    ({"answer_ids": [100_000]}, "answer_ids"),
]


@pytest.mark.parametrize("field, name", TOLD)
def test_a_wrong_chat_is_refused_without_an_echo(address, field, name):
    body = {"model": "tales", "messages": [{"role": "user", "content": "a"}]} | field
    refused = post(address, json.dumps(body), "/chat/completions")
    assert refused.status_code == 400 and MARK not in refused.text
    assert refused.json()["error"]["param"] == name


def test_models(client):
    assert [one.id for one in client.models.list()] == ["tales"]
    assert client.models.retrieve("tales").created == 1
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("Zyx7")
    assert caught.value.code == "model_not_found" and MARK not in str(caught.value.body)
    with pytest.raises(openai.NotFoundError):
        complete(client, model="another")
    with pytest.raises(openai.NotFoundError):
        chat(client, model="another")


def test_a_context_that_is_too_long_is_refused(client, model_and_tokenizer):
    longest = model_and_tokenizer[0].config.max_seq_len
    for asked in ({"max_tokens": longest}, {"prompt": [5] * longest}, {"prompt": "a " * 5000}):
        with pytest.raises(openai.BadRequestError) as caught:
            complete(client, **asked)
        assert caught.value.code == "context_length_exceeded"
    answer = complete(client, prompt=[5] * (longest - 2), max_tokens=1)
    assert answer.usage.prompt_tokens == longest - 1  # after end-of-text, which begins a text
    assert chat(client, seed=1).usage.total_tokens <= longest


SETTINGS = [  # each changes the text, and is what `generate_text` makes of it
    {},
    {"temperature": 0.3},
    {"temperature": 0},
    {"top_p": 0.3},
    {"top_k": 2},
    {"min_p": 0.5},
    {"repetition_penalty": 3.0},
    {"presence_penalty": 2.0},
    {"frequency_penalty": 2.0},
    {"logit_bias": {46: -100.0, 257: 5.0}},
    {"stop_strings": [" a", ".", "day"]},
]


def test_a_prompt_that_cannot_fit_is_not_read(client, model_and_tokenizer, monkeypatch):
    read = []
    monkeypatch.setattr("llm_course.answer._read_prompt", lambda served, prompt: read.append(prompt))
    most = 16 * model_and_tokenizer[0].config.max_seq_len
    said = {"role": "user", "content": "a" * (most // 2 + 1)}
    for ask in (
        lambda: complete(client, prompt="a" * (most + 1)),
        lambda: complete(client, prompt=["a", "b" * (most + 1)]),
        lambda: complete(client, prompt=[5] * (most + 1)),
        lambda: chat(client, messages=[said] * 2),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask()
        assert caught.value.code == "context_length_exceeded" and read == []


@pytest.fixture(scope="module")
def exact(model_and_tokenizer):
    "A server in float64, where passes of any shape have the same bits for a text: model, client."
    model, tokenizer = load_model()
    model.double()
    engine = Engine(model, n_rows=4, max_waiting=64, fixed=False)
    engine.start()
    with serving(engine, model, tokenizer) as address:
        yield model, tokenizer, lambda: openai.AsyncOpenAI(base_url=address, api_key="none")
    engine.stop(1)


async def streamed(client, **asked):
    "A streamed text, its pieces joined."
    stream = await client.completions.create(model="tales", stream=True, **asked)
    return "".join([chunk.choices[0].text async for chunk in stream])


def test_streams_at_once_are_the_texts_that_the_model_writes_alone(exact):
    model, tokenizer, new_client = exact
    prompts = ["", "Anna had a", "On Friday", "One day ☀"] * len(SETTINGS)
    alone, asked = [], []
    for seed, (prompt, setting) in enumerate(zip(prompts, SETTINGS * 2)):
        generator = torch.Generator().manual_seed(seed)
        text = generate_text(model, tokenizer, prompt, 16, generator=generator, **setting)
        alone.append("".join(text))
        extra = {name: setting[name] for name in OURS & set(setting)}
        own = {name: value for name, value in setting.items() if name not in extra}
        if "stop_strings" in own:
            own["stop"] = own.pop("stop_strings")
        asked.append({"prompt": prompt, "seed": seed, "max_tokens": 16, "extra_body": extra} | own)

    async def all_of_them():
        async with new_client() as client:
            return await asyncio.gather(*[streamed(client, **one) for one in asked])

    assert asyncio.run(all_of_them()) == alone
    assert len(set(alone)) > 0.9 * len(alone)


def test_a_text_in_float32_is_that_of_the_engine_alone(client, engine, model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    ids = prompt_ids(model, tokenizer, "Anna had")
    params = SamplingParams(stop_ids=tokenizer.marks.end_ids)
    alone = [engine.write(ids, 20, params=params, seed=seed) for seed in (5, 6, 7)]
    answer = complete(client, n=3, seed=5, max_tokens=20)
    assert [one.text for one in answer.choices] == [tokenizer.decode(text) for text in alone]
    assert answer.usage.completion_tokens == sum(map(len, alone))
    assert (answer.usage.prompt_tokens, answer.system_fingerprint) == (len(ids), "fp_1")
    by_ids = complete(client, prompt=tokenizer.encode_ordinary("Anna had"), seed=6, max_tokens=20)
    assert by_ids.choices[0].text == answer.choices[1].text


def test_several_prompts_are_as_if_each_were_alone(client):
    prompts = ["Anna had", "Tom wanted"]
    several = complete(client, prompt=prompts, n=2, seed=3, max_tokens=12)
    assert [one.index for one in several.choices] == [0, 1, 2, 3]
    for i, prompt in enumerate(prompts):
        one = complete(client, prompt=prompt, n=2, seed=3, max_tokens=12)
        assert [c.text for c in one.choices] == [c.text for c in several.choices[2 * i : 2 * i + 2]]


def test_without_a_seed_each_text_is_another(client):
    texts = [one.text for one in complete(client, n=4, max_tokens=30, temperature=1.5).choices]
    assert len(set(texts)) == 4


def joined(chunks):
    "What the chunks of a stream are together: text, end and log-probabilities of each choice."
    found = {}
    for chunk in chunks:
        for choice in chunk.choices:
            one = found.setdefault(choice.index, {"text": "", "end": None, "logprobs": []})
            delta = getattr(choice, "delta", None)
            one["text"] += choice.text if delta is None else delta.content
            one["end"] = choice.finish_reason
            one["logprobs"].append(choice.logprobs)
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("asked", [{}, {"echo": True}, {"stop": [" a", "et"]}, {"n": 3}])
def test_a_stream_of_a_text_is_the_whole(client, asked):
    asked = {"seed": 4, "max_tokens": 30, "logprobs": 2} | asked
    whole = complete(client, **asked)
    usage = {"stream_options": {"include_usage": True}}
    chunks = list(complete(client, stream=True, **usage, **asked))
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].choices == [] and len({chunk.id for chunk in chunks}) == 1
    for one, choice in zip(joined(chunks), whole.choices, strict=True):
        assert (one["text"], one["end"]) == (choice.text, choice.finish_reason)
        for name, column in choice.logprobs.model_dump().items():
            assert [x for part in one["logprobs"] for x in getattr(part, name)] == column
        columns = choice.logprobs.model_dump().values()
        assert len({len(column) for column in columns}) == 1


def test_a_stream_of_a_chat_is_the_whole(client):
    asked = {"seed": 4, "max_completion_tokens": 20, "logprobs": True, "top_logprobs": 3, "n": 2}
    whole = chat(client, **asked)
    chunks = list(chat(client, stream=True, **asked))
    roles = [chunk.choices[0].delta.role for chunk in chunks]
    assert roles == ["assistant"] * 2 + [None] * (len(chunks) - 2)
    for one, choice in zip(joined(chunks), whole.choices, strict=True):
        assert (one["text"], one["end"]) == (choice.message.content, choice.finish_reason)
        tokens = [token for part in one["logprobs"] for token in part.content]
        assert tokens == choice.logprobs.content
        said = bytes(byte for token in tokens for byte in token.bytes)
        assert said.decode() == choice.message.content
    with client.chat.completions.stream(
        model="tales", messages=[{"role": "user", "content": "Hello!"}], **asked
    ) as stream:  # what the client itself makes of the pieces
        final = stream.get_final_completion()
    assert [c.message.content for c in final.choices] == [c.message.content for c in whole.choices]


def test_an_answer_goes_on_behind_its_first_ids(client):
    asked = {"temperature": 0, "seed": 1, "logprobs": True, "max_tokens": 20}
    whole = chat(client, **asked)
    tokens = whole.choices[0].logprobs.content
    begin = [token.id for token in tokens[:8]]
    rest = chat(client, **asked | {"max_tokens": 12}, extra_body={"answer_ids": begin})
    assert [token.id for token in rest.choices[0].logprobs.content] == [t.id for t in tokens[8:]]
    said = "".join(token.token for token in tokens[:8])
    assert said + rest.choices[0].message.content == whole.choices[0].message.content
    assert rest.usage.prompt_tokens == whole.usage.prompt_tokens + 8
    assert rest.usage.total_tokens == whole.usage.total_tokens
    assert told(CompletionRequest, {"model": "tales", "answer_ids": begin})["param"] == "answer_ids"


def test_parts_and_a_developer_are_as_text_and_system(client):
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]
    as_parts = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    as_text = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
    asked = {"seed": 1, "max_tokens": 10}
    first = chat(client, messages=as_parts, **asked)
    second = chat(client, messages=as_text, **asked)
    assert first.choices == second.choices
    assert first.usage.prompt_tokens == second.usage.prompt_tokens


def test_log_probabilities_are_those_of_the_model(exact):
    model, tokenizer, new_client = exact
    ids = prompt_ids(model, tokenizer, "Anna had")
    generator = torch.Generator().manual_seed(2)
    own = {"top_logprobs": 3, "generator": generator, "stop_ids": tokenizer.marks.end_ids}
    tokens = list(generate_tokens(model, ids, 8, **own))

    async def asked():
        text = {"prompt": "Anna had", "logprobs": 3, "echo": True}
        messages = [{"role": "user", "content": "Hello!"}]
        said = {"messages": messages, "logprobs": True, "top_logprobs": 2}
        common = {"model": "tales", "seed": 2, "max_tokens": 8}
        async with new_client() as client:
            completion = await client.completions.create(**common, **text)
            return completion, await client.chat.completions.create(**common, **said)

    completion, answer = asyncio.run(asked())
    found = completion.choices[0].logprobs
    n_prompt = len(ids) - 1  # without end-of-text, which begins a text
    assert found.token_ids == ids[1:] + [token.id for token in tokens]
    torch.testing.assert_close(found.token_logprobs[n_prompt:], [t.log_prob for t in tokens])
    with torch.inference_mode():
        log_probs = model(torch.tensor([ids]))[0].log_softmax(-1)
    expected = [log_probs[i, id].item() for i, id in enumerate(ids[1:])]
    assert found.token_logprobs[:n_prompt] == pytest.approx(expected, abs=1e-5)
    text = completion.choices[0].text
    assert text.startswith("Anna had") and found.text_offset[0] == 0
    for token, begin in zip(found.tokens, found.text_offset):
        assert text.startswith(token, begin)
    for token, best, named in zip(tokens, found.top_logprobs[n_prompt:], found.top_ids[n_prompt:]):
        likeliest = dict([*token.top_logprobs, token[:2]])
        assert {named[name]: log_prob for name, log_prob in best.items()} == pytest.approx(likeliest)
    for token in answer.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 2 and token.bytes == list(token.token.encode())
        assert tokenizer.decode([token.id]) == token.token


def test_a_prompt_can_be_weighed_without_a_word(client):
    answer = complete(client, echo=True, logprobs=0, max_tokens=0)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("Anna had", "length")
    assert all(log_prob <= 0 for log_prob in choice.logprobs.token_logprobs)
    assert [list(best) for best in choice.logprobs.top_logprobs] == [
        [token] for token in choice.logprobs.tokens
    ]
    assert answer.usage.completion_tokens == 0


def test_a_common_beginning_is_read_once(client):
    prompt = "Anna had a red frog called Pip. " * 6
    first = complete(client, prompt=prompt, max_tokens=1).usage
    second = complete(client, prompt=prompt, max_tokens=1).usage
    assert second.prompt_tokens_details.cached_tokens >= 32
    assert second.prompt_tokens == first.prompt_tokens


def test_special_tokens_are_plain_text(client, model_and_tokenizer):
    tokenizer = model_and_tokenizer[1]
    with pytest.raises(openai.BadRequestError, match="special"):
        complete(client, prompt=[5, tokenizer.eos_id])
    plain = tokenizer.encode_ordinary("<|endoftext|>")
    answer = complete(client, prompt="<|endoftext|>", echo=True, logprobs=0, max_tokens=0)
    assert answer.choices[0].logprobs.token_ids == plain
    said = [{"role": "user", "content": "<|endoftext|>"}]
    n_more = chat(client, messages=said, max_tokens=1).usage.prompt_tokens
    said[0]["content"] = ""
    n_less = chat(client, messages=said, max_tokens=1).usage.prompt_tokens
    assert n_more - n_less == len(plain)


def test_a_client_that_goes_away_frees_its_place(engine, address):
    "Streamed or not, running or still in the queue."

    def ask(**asked):
        body = json.dumps({"model": "tales", "prompt": "A", "max_tokens": 200} | asked).encode()
        # Nothing ends these texts but their length.
        connection = socket.create_connection(("127.0.0.1", int(address.split(":")[2][:-3])))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        return connection

    def is_empty():
        return engine.counts["running"] + engine.counts["waiting"] == 0

    forever = {"logit_bias": {"1000": 0, str(0): -100}, "n": 2}
    for stream in (True, False):
        until(is_empty)
        clients = [ask(stream=stream, **forever) for _ in range(5)]  # ten texts in four rows
        until(lambda: engine.counts["running"] == 4 and engine.counts["waiting"] > 0)
        for connection in clients:
            connection.close()
        n_steps = engine.counts["steps"]
        until(is_empty)
        assert engine.counts["steps"] - n_steps < 100


def test_a_full_queue_is_told_and_nothing_of_the_request_stays(client, engine):
    until(lambda: engine.counts["running"] + engine.counts["waiting"] == 0)
    with pytest.raises(openai.RateLimitError) as caught:
        complete(client, n=16, max_tokens=100)  # 4 rows, 8 places in the queue
    assert caught.value.response.headers["retry-after"] == "1"
    until(lambda: engine.counts["running"] + engine.counts["waiting"] == 0)
    assert complete(client, max_tokens=1).choices


class Script:
    "An engine that writes what it is told, each token when the last one has been read."

    def __init__(self, ids, reason="length"):
        self.ids = ids
        self.reason = reason

    def submit(self, ids, max_new_tokens, params, seed, top_logprobs, prompt_logprobs, deliver):
        cancelled = threading.Event()

        def write():
            for id in self.ids:
                if cancelled.wait(0.002):
                    break
                deliver(GeneratedToken(id, -1.0, [(id, -1.0)]))
            self.was_cancelled = cancelled.is_set()
            deliver(Finished("cancelled" if self.was_cancelled else self.reason, 1, 0))

        threading.Thread(target=write).start()
        return SimpleNamespace(cancel=cancelled.set)


def scripted(model_and_tokenizer, script, **asked):
    "The answer, whole and in events, of an engine that writes what it is told."
    served = Served("tales", model_and_tokenizer[0], model_and_tokenizer[1], script, 1)
    app = make_app(SimpleNamespace(current=served))

    async def both():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            body = {"model": "tales", "prompt": "", "max_tokens": 50, "logprobs": 0} | asked
            whole = await client.post("/v1/completions", json=body)
            events = await client.post("/v1/completions", json=body | {"stream": True})
        return whole, [line[6:] for line in events.text.split("\n\n") if line]

    return asyncio.run(both())


def test_characters_come_whole_and_a_stop_string_ends_a_text(model_and_tokenizer):
    tokenizer = model_and_tokenizer[1]
    bytes_of = [tokenizer.encode_ordinary(c) for c in "a☀b€END, more"]
    ids = [id for character in bytes_of for id in character]
    assert len(ids) > len("a☀b€END, more")  # a character of several tokens
    whole, events = scripted(model_and_tokenizer, Script(ids))
    assert whole.json()["choices"][0]["text"] == "a☀b€END, more"
    pieces = [json.loads(event)["choices"][0]["text"] for event in events[:-1]]
    assert "".join(pieces) == "a☀b€END, more" and "\ufffd" not in str(pieces)
    assert events[-1] == "[DONE]"

    script = Script(ids)
    whole, events = scripted(model_and_tokenizer, script, stop=["XYZ", "END"])
    assert script.was_cancelled  # its row is free before the text has ended
    choice = whole.json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("a☀b€", "stop")
    assert choice["logprobs"]["token_ids"] == [id for one in bytes_of[:4] for id in one]
    assert choice["logprobs"]["text_offset"] == [
        i for i, one in enumerate(bytes_of[:4]) for _ in one
    ]
    assert whole.json()["usage"]["completion_tokens"] == sum(map(len, bytes_of[:7]))
    chunks = [json.loads(event)["choices"][0] for event in events[:-1]]
    assert "".join(chunk["text"] for chunk in chunks) == "a☀b€"
    assert [i for chunk in chunks for i in chunk["logprobs"]["token_ids"]] == (
        choice["logprobs"]["token_ids"]
    )
    n = sum(map(len, bytes_of[:6]))
    whole, events = scripted(model_and_tokenizer, Script(ids[:n]), stop=["b€END", "€ENX"])
    assert whole.json()["choices"][0]["text"] == "a☀b€EN"  # what was held back is shown at last


def test_what_fails_is_told_and_nothing_of_it(model_and_tokenizer):
    whole, events = scripted(model_and_tokenizer, Script([5, 6], "error"), prompt=MARK)
    assert whole.status_code == 500 and MARK not in whole.text
    assert json.loads(events[-1])["error"]["type"] == "server_error"
    assert MARK not in str(events)
