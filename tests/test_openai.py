"""OpenAI's API: every field of its clients is decided about, and each text is what it would be alone."""

import json
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

from llm_course import load_model
from llm_course.guard import Limits
from llm_course.openai import Served, make_app
from llm_course.scheduler import Engine
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
    why, neutral = REFUSED[name]
    bodies = [
        (CompletionRequest, lambda field: {"model": "tales"} | field),
        (Message, lambda field: {"role": "user", "content": "a"} | field),
        (TextPart, lambda field: {"type": "text", "text": "a"} | field),
    ]
    for kind, body in bodies:
        for value in neutral:
            kind.model_validate(body({name: value}))
        for value in (MARK, 2, 1.5, {"a": MARK}, [MARK], {"type": "json_object"}):
            assert told(kind, body({name: value})) == {
                "message": f"{name} is refused: {why}.",
                "type": "invalid_request_error",
                "param": name,
                "code": None,
            }


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
