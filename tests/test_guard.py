"""A guarded server refuses in one form, repeats nothing, forgets nobody, and serves on: fuzzed over
its own schema, and attacked by hand through sockets."""

import asyncio
import gzip
import io
import json
import logging
import re
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import h11
import httpx
import pytest
import schemathesis
import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from hypothesis import HealthCheck, Phase, given, seed, settings
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.generation.modes import GenerationMode

from llm_course.batching import Engine
from llm_course.checkpoint import load_model
from llm_course.gpt import GPT
from llm_course.guard import Guard, Limits, PatientProtocol
from llm_course.model_config import GPTConfig
from llm_course.openai import Served, make_app
from llm_course.page import PAGE_FILES, add_page
from llm_course.schema import ApiError, ChatRequest, CompletionRequest

CANARY = "canary7f3a"
JSON = {"Content-Type": "application/json"}
WRITE = {"model": "tiny", "prompt": "Mia had a", "seed": 1, "max_tokens": 4}
TALK = {"model": "tiny", "messages": [{"role": "user", "content": "Mia"}], "max_tokens": 4}
BODIES = {"/v1/completions": WRITE, "/v1/chat/completions": TALK}
LIMITS = Limits(
    body_bytes=100_000, body_seconds=0.8, head_seconds=0.8, connections=60, max_tokens=16
)
LINE = {"time", "id", "path", "status", "seconds", "prompt_tokens", "completion_tokens", "error"}


class Loop:
    "An event loop in a thread, and a client of an ASGI app in it."

    def __init__(self, app):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.app = app
        transport = httpx.ASGITransport(app)
        self.client = httpx.AsyncClient(
            transport=transport, base_url="http://localhost", timeout=30
        )

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def send(self, method, path, **how):
        answer = self.run(self.client.request(method, path, **how))
        self.app.flush()
        return answer

    def post(self, path, body, **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send("POST", path, content=content, headers=JSON | headers)


@cache
def the_tokenizer():
    return load_model()[1]


def make_house(limits=LIMITS, **settings):
    "A tiny model, its engine, its app and a guard around it."
    torch.manual_seed(0)
    tokenizer = the_tokenizer()
    shape = GPTConfig(
        vocab_size=tokenizer.vocab_size, n_layers=1, n_heads=2, d_model=16, max_seq_len=64
    )
    model = GPT(shape).eval()
    engine = Engine(model, n_rows=8, max_waiting=settings.pop("max_waiting", 64))
    served = SimpleNamespace(current=Served("tiny", model, tokenizer, engine, 0, is_story=True))
    app = make_app(served, limits)
    add_page(app, served, frozenset)
    guard = Guard(app, limits, counts=lambda: engine.counts, **settings)
    return SimpleNamespace(app=app, engine=engine, guard=guard)


@pytest.fixture(scope="module")
def house():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    house = make_house()
    house.engine.start()
    house.loop = Loop(house.guard)
    house.first = house.loop.post("/v1/completions", WRITE).json()["choices"]
    yield house
    house.engine.stop(5)
    torch.set_num_threads(threads)


@contextmanager
def serving(app, loop):
    "uvicorn with an app on a free port, in a loop that runs."
    config = uvicorn.Config(
        app, port=0, http=PatientProtocol, lifespan="off", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    served = asyncio.run_coroutine_threadsafe(server.serve(), loop.loop)
    until(lambda: server.started)
    server.port = server.servers[0].sockets[0].getsockname()[1]
    yield server
    server.should_exit = server.force_exit = True
    served.result(30)


@pytest.fixture(scope="module")
def server(house):
    with serving(house.guard, house.loop) as server:
        yield server


def until(condition, seconds=30):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "it did not come"
        time.sleep(0.01)


def is_at_rest(house):
    counts = house.engine.counts
    return counts["waiting"] == counts["running"] == 0


def check_serves(house):
    "Every row is free, no block is lost, and the first text comes as it came at first."
    until(lambda: is_at_rest(house))
    pool = house.engine.pool
    assert len(pool.free) == pool.n_blocks
    assert house.loop.post("/v1/completions", WRITE).json()["choices"] == house.first


def check_refused(answer):
    "A 4xx in OpenAI's form, which says something and repeats nothing."
    assert 400 <= answer.status_code < 500, answer.text[:300]
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".") and len(error["message"]) <= 300, error
    assert CANARY not in answer.text and CANARY not in str(answer.headers)


def lines_of(text):
    "The log, of which each line is JSON with known names alone."
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(set(line) <= LINE for line in lines)
    return lines


# Bodies that are none, and what each field may not be.
BAD_JSON = {
    "nothing": b"",
    "a word": CANARY.encode(),
    "cut": b'{"model": "' + CANARY.encode(),
    "no UTF-8": b'{"model": "\xff' + CANARY.encode() + b'"}',
    "UTF-16": json.dumps(WRITE).encode("utf-16"),
    "gzip": gzip.compress(json.dumps(WRITE).encode()),
    "10,000 brackets": b"[" * 10_000 + b"]" * 10_000,
    "10,000 objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "a key twice": b'{"model": "tiny", "prompt": "Mia", "prompt": "' + CANARY.encode() + b'"}',
    "a key twice, deep": b'{"metadata": {"a": "1", "a": "2"}, "model": "tiny", "prompt": "a"}',
    "a form": b"model=tiny&prompt=" + CANARY.encode(),
    "5,000 digits": b'{"model": "tiny", "prompt": "a", "seed": ' + b"7" * 5_000 + b"}",
    "a list": b"[1, 2]",
    "a string": b'"' + CANARY.encode() + b'"',
    "null": b"null",
}
SCALARS = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "-1", "0.5", "1" + "0" * 400, "-0.0"]
SCALARS += [r'"\ud800"', r'"\udfff\ud800"', f'"{CANARY}"', '""', f'"{CANARY * 1000}"', "true"]
SCALARS += ["[]", "{}", "[[]]", "[null]", f'["{CANARY}"]', f'{{"{CANARY}": "{CANARY}"}}', "[1e999]"]
SCALARS += [
    f'[{{"{CANARY}": 1}}]',
    f'{{"role": "{CANARY}"}}',
    r'["\ud800"]',
    r'{"\ud800": 1}',
    "[-1]",
]


@pytest.mark.parametrize("path", [*BODIES, "/verdict"])
@pytest.mark.parametrize("name", BAD_JSON)
def test_a_bad_body(house, path, name, capsys):
    check_refused(house.loop.post(path, BAD_JSON[name]))
    assert CANARY not in capsys.readouterr().err


@pytest.mark.parametrize("path", BODIES)
def test_each_field_of_each_kind(house, path, capsys):
    "What is written for a right value repeats nothing either, and a wrong one is a 4xx."
    model = ChatRequest if "chat" in path else CompletionRequest
    fields = [*model.model_fields, "tools", "suffix", CANARY]
    n_written = 0
    for field in fields:
        for value in SCALARS:
            others = {name: x for name, x in BODIES[path].items() if name != field}
            body = json.dumps(others)[:-1] + f", {json.dumps(field)}: {value}}}"
            answer = house.loop.post(path, body.encode())
            if answer.status_code == 200:
                n_written += 1
                assert CANARY not in answer.text
            else:
                check_refused(answer)
    assert n_written > 20
    assert CANARY not in capsys.readouterr().err
    check_serves(house)


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data; boundary=x"],
)
def test_json_alone(house, kind):
    answer = house.loop.post("/v1/completions", WRITE, **{"Content-Type": kind})
    check_refused(answer)
    assert answer.status_code == 415
    kind = "Application/JSON; charset=utf-8"
    assert house.loop.post("/v1/completions", WRITE, **{"Content-Type": kind}).status_code == 200


def test_other_paths_and_methods(house, capsys):
    paths = (f"/{CANARY}", f"/v1/models/{CANARY}", "/v1/models/../x", "/health/", "/docs", "/redoc")
    for path in paths:
        answer = house.loop.send("GET", path)
        check_refused(answer)
        assert answer.status_code == 404
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "HEAD"):
        answer = house.loop.send(method, "/v1/completions")
        assert answer.status_code == 405 and "access-control-allow-origin" not in answer.headers
    origin = {"Origin": "http://evil.example"}
    answer = house.loop.post("/v1/completions", WRITE, **origin)
    assert not any("access-control" in name for name in answer.headers)
    assert CANARY not in capsys.readouterr().err


def test_host():
    loop = Loop(Guard(FastAPI(), LIMITS))
    for host in ("localhost", "LocalHost:80", "127.0.0.1:8000", "[::1]", "[::1]:9"):
        assert loop.send("GET", "/health", headers={"Host": host}).status_code == 200
    others = (
        "evil.example",
        "localhost.evil.example",
        "localhost:1:2",
        "",
        "::1",
        "127.0.0.1@evil",
        "localhost:x",
    )
    for host in others:
        answer = loop.send("GET", "/health", headers={"Host": host})
        check_refused(answer)
        assert answer.status_code == 403
    loop = Loop(Guard(FastAPI(), LIMITS, hosts=()))
    assert loop.send("GET", "/health", headers={"Host": "any.example"}).status_code == 200


def test_key(capsys):
    loop = Loop(make_house(key="sésame", open_paths=("/health", *PAGE_FILES)).guard)
    wrong = [
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {CANARY}",
        "Basic s",
        "sésame",
        "Bearer sésam",
        "Bearer sésame2",
    ]
    for given_key in wrong:
        for method, path in (
            ("GET", "/v1/models"),
            ("GET", "/metrics"),
            ("GET", "/openapi.json"),
            ("POST", "/v1/completions"),
            ("GET", "/nowhere"),
            ("GET", "/health/"),
        ):
            answer = loop.send(method, path, headers=JSON | {"Authorization": given_key.encode()})
            check_refused(answer)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
    for path in ("/health", *PAGE_FILES):
        assert loop.send("GET", path).status_code == 200
    for given_key in ("Bearer sésame", "bearer  sésame"):
        assert (
            loop.send(
                "GET", "/v1/models", headers={"Authorization": given_key.encode()}
            ).status_code
            == 200
        )
    odd = {"Authorization": b"Bearer \xff\xfe\x80"}
    assert loop.send("GET", "/v1/models", headers=odd).status_code == 401
    said = capsys.readouterr().err
    assert CANARY not in said and "sésame" not in said and "s\\u00e9same" not in said


def big_body(n, pause=0.0):
    async def chunks():
        for _ in range(n):
            await asyncio.sleep(pause)
            yield b" " * 10_000

    return chunks()


def test_a_long_body_and_a_slow_one(house):
    answer = house.loop.post("/v1/completions", b" " * (LIMITS.body_bytes + 1))
    check_refused(answer)
    assert answer.status_code == 413
    kind = JSON | {"Content-Length": "1000000000"}
    answer = house.loop.send("POST", "/v1/completions", content=big_body(100_000), headers=kind)
    assert answer.status_code == 413
    start = time.time()
    slow = big_body(1_000, pause=0.1)
    answer = house.loop.send("POST", "/v1/completions", content=slow, headers=kind)
    check_refused(answer)
    assert answer.status_code == 408 and time.time() - start < 10


TOO_MUCH = {  # bodies of which each part would cost time
    "objects": b'{"prompt": [' + b"{}," * 30_000 + b"{}]}",
    "lists": b'{"prompt": [' + b"[]," * 30_000 + b"[]]}",
    "fields": json.dumps({f"a{i}": 1 for i in range(6_000)}).encode(),
    "deep": b'{"a":' * 9_000 + b"1" + b"}" * 9_000,
    "metadata": json.dumps({"metadata": {f"a{i}": [] for i in range(4_000)}}).encode(),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_is_too_much_is_not_read(name, monkeypatch):
    "Its marks are counted, and nothing of it is made into an object."
    made = []
    monkeypatch.setattr("llm_course.guard._once", lambda pairs: made.append(pairs))
    loop = Loop(make_house(replace(LIMITS, body_bytes=1_000_000, body_marks=5_000)).guard)
    for path in (*BODIES, "/verdict"):
        check_refused(loop.post(path, TOO_MUCH[name]))
    assert made == []


def test_no_list_of_errors_is_long(house, monkeypatch):
    "Of a body that the guard lets pass, what is too long or unknown is refused before the rest."
    n_errors = []
    monkeypatch.setattr(
        "llm_course.openai.refusal",
        lambda errors: n_errors.append(len(errors)) or ApiError(400, "One."),
    )
    bad = {f"a{i}": [] for i in range(1_500)}
    talks = [bad, {"role": "x", "content": 1}, {"role": "user", "content": [bad] * 2}]
    for field in ("logit_bias", "metadata", "user", "stop", "prompt", "stream_options", "model"):
        for value in (bad, [bad] * 2, list(bad), list(bad.values())):
            check_refused(house.loop.post("/v1/completions", WRITE | {field: value}))
    for talk in (talks, [talks[1]] * 1_000, [talks[2]], [TALK["messages"][0]] * 1_001):
        check_refused(house.loop.post("/v1/chat/completions", TALK | {"messages": talk}))
    for path, body in (*BODIES.items(), ("/verdict", {"text": "a"})):
        check_refused(house.loop.post(path, body | bad))
    biases = {f"a{i}": [] for i in range(1_024)}
    check_refused(house.loop.post("/v1/completions", WRITE | {"logit_bias": biases}))
    assert max(n_errors[:-1]) <= 20 and n_errors[-1] == 2_048


def test_limits_of_the_app(house):
    for change in (
        {"max_tokens": 17},
        {"n": 17},
        {"prompt": ["Mia"] * 17},
        {"prompt": "Mia " * 100},
    ):
        answer = house.loop.post("/v1/completions", WRITE | change)
        check_refused(answer)
        assert answer.status_code == 400
    small = make_house(Limits(prompt_tokens=2))
    check_refused(Loop(small.guard).post("/v1/completions", WRITE))


def test_a_full_queue():
    full = make_house(max_waiting=2)  # its engine does not run
    loop = Loop(full.guard)
    answer = loop.post("/v1/completions", WRITE | {"n": 3})
    check_refused(answer)
    assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
    while full.engine.step():
        pass
    assert is_at_rest(full)


def test_a_text_that_takes_too_long():
    slow = make_house(Limits(request_seconds=0.3))  # its engine steps too late
    loop = Loop(slow.guard)
    timer = threading.Timer(0.5, slow.engine.start)
    timer.start()
    choice = loop.post("/v1/completions", WRITE).json()["choices"][0]
    assert choice["finish_reason"] == "length" and choice["text"] == ""
    until(lambda: is_at_rest(slow))
    slow.engine.stop(5)


def faulty_app():
    app = FastAPI()

    @app.get("/fails")
    async def fails():
        raise ValueError(CANARY)

    @app.get("/breaks")
    async def breaks():
        def parts():
            yield b"begun"
            raise ValueError(CANARY)

        return StreamingResponse(parts())

    @app.get("/pours")
    async def pours():
        return StreamingResponse(b"x" * 65_536 for _ in range(2_000))

    return app


def test_an_exception(capsys, caplog):
    guard = Guard(faulty_app(), LIMITS)
    loop = Loop(guard)
    answer = loop.send("GET", "/fails")
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert CANARY not in answer.text
    with serving(guard, loop) as server:
        broken = raw(server, b"GET /breaks HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"begun" in broken and not broken.endswith(b"0\r\n\r\n")
    guard.flush()
    said = capsys.readouterr().err
    lines = lines_of(said)
    assert "ValueError in fails" in lines[0]["error"] and lines[0]["status"] == 500
    assert lines[1]["status"] == 200 and lines[1]["error"]
    assert CANARY not in said + caplog.text


def test_health_and_metrics(house):
    answer = house.loop.send("GET", "/health")
    assert answer.status_code == 200
    house.guard.is_stopping = True
    assert house.loop.send("GET", "/health").status_code == 503
    house.guard.is_stopping = False
    house = make_house()  # a second one in the process, with numbers of its own
    house.engine.start()
    loop = Loop(house.guard)
    for body in (WRITE, WRITE | {"stream": True}, WRITE | {"model": CANARY}):
        loop.post("/v1/completions", body)
    loop.send("GET", f"/{CANARY}")
    text = loop.run(house.guard.metrics()).body.decode()
    assert CANARY not in text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    by_status = {
        sample.labels["status"]: sample.value
        for sample in families["llm_requests"].samples
        if sample.name == "llm_requests_total"
    }
    assert by_status == {"200": 2, "404": 2}
    first = {sample.name: sample.value for sample in families["llm_first_token_seconds"].samples}
    assert first["llm_first_token_seconds_count"] == 2
    counts = house.engine.counts
    for name in ("waiting", "running", "free_blocks", "tokens_written"):
        assert families[f"llm_{name}"].samples[0].value == counts[name]
    house.engine.stop(5)


def test_the_log(house, capsys):
    capsys.readouterr()
    house.loop.post(
        "/v1/completions", WRITE | {"user": CANARY, "prompt": CANARY, "metadata": {"a": CANARY}}
    )
    house.loop.send("GET", "/v1/models%0A%7B%22status%22%3A%20200%7D")
    house.loop.send(
        "GET", f"/v1/models?{CANARY}", headers={"User-Agent": CANARY, "X-Request-Id": CANARY}
    )
    said = capsys.readouterr().err
    lines = lines_of(said)
    assert CANARY not in said
    assert [line["path"] for line in lines] == ["/v1/completions", None, "/v1/models"]
    assert lines[0]["prompt_tokens"] > 3 and lines[0]["completion_tokens"] == 4
    assert len({line["id"] for line in lines}) == 3
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", lines[0]["time"])
    assert house.loop.send("GET", "/health").status_code == 200
    assert capsys.readouterr().err == ""


class Paused(io.StringIO):
    "A stream whose reader stands still until it goes on."

    def __init__(self):
        super().__init__()
        self.goes_on = threading.Event()

    def write(self, text):
        self.goes_on.wait(30)
        return super().write(text)


def test_a_log_that_nobody_reads(monkeypatch):
    "It holds nobody up. What waits is written when its reader goes on, what was too much is counted."
    monkeypatch.setattr("llm_course.guard._MAX_LINES", 3)
    monkeypatch.setattr("sys.stderr", Paused())
    guard = Guard(FastAPI(), LIMITS)
    loop = Loop(guard)

    def statuses():
        return [loop.run(loop.client.get("/metrics")).status_code for _ in range(6)]

    assert statuses() == [200] * 6
    n_dropped = guard.registry.get_sample_value("llm_log_lines_dropped_total")
    assert n_dropped in (2, 3)  # one may be in the writer's hand
    start = time.time()
    guard.flush()
    assert 0.9 < time.time() - start < 10
    sys.stderr.goes_on.set()
    until(lambda: not guard.lines.unfinished_tasks)
    assert len(lines_of(sys.stderr.getvalue())) == 6 - n_dropped
    sys.stderr.close()  # and a log that is closed holds nobody up either
    assert statuses() == [200] * 6
    until(lambda: not guard.lines.unfinished_tasks)


def test_head(server):
    "Balancers ask so: the head of a GET, and no body."
    for path in (b"/health", b"/v1/models", b"/"):
        said = raw(server, b"HEAD %s HTTP/1.0\r\nHost: localhost\r\n\r\n" % path)
        assert said.startswith(b"HTTP/1.1 200") and said.endswith(b"\r\n\r\n")


# Through sockets.


def raw(server, data, seconds=3.0):
    "All that the server answers to these bytes until it hangs up."
    with socket.create_connection(("127.0.0.1", server.port), seconds) as one:
        received = b""
        with suppress(ConnectionError):
            one.sendall(data)
            while piece := one.recv(65_536):
                received += piece
    return received


def request(body, path="/v1/completions", head=b"", version=b"1.1"):
    start = b"POST %s HTTP/%s\r\nHost: localhost\r\n" % (path.encode(), version)
    kind = b"Content-Type: application/json\r\n"
    return start + kind + head + b"Content-Length: %d\r\n\r\n" % len(body) + body


CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED += b"Content-Type: application/json\r\nTransfer-Encoding: "
NONSENSE = {
    "no HTTP": CANARY.encode() + b"\r\n\r\n",
    "TLS": bytes.fromhex("16030100c5010000c1030300"),
    "no size": CHUNKED + b"chunked\r\n\r\nzz\r\n" + CANARY.encode(),
    "a negative size": CHUNKED + b"chunked\r\n\r\n-5\r\n" + CANARY.encode(),
    "a huge size": CHUNKED + b"chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
    "an unknown encoding": CHUNKED + b"canary7f3a\r\n\r\n0\r\n\r\n",
    "gzip": request(gzip.compress(json.dumps(WRITE).encode()), head=b"Content-Encoding: gzip\r\n"),
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length no number": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: canary7f3a\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: canary7f3a\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "a null": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\x00canary7f3a\r\n\r\n",
    "a huge header": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + CANARY.encode() * 20_000,
    "a huge path": b"GET /" + CANARY.encode() * 20_000,
    "1,000 headers": b"GET /x HTTP/1.1\r\nHost: localhost\r\n"
    + b"X: canary7f3a\r\n" * 1_000
    + b"\r\n",
    "HTTP/1.0": request(b"[]", version=b"1.0"),
    "HTTP/1.0 without a host": b"GET /health HTTP/1.0\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a web socket": b"GET /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_at_a_socket(house, server, name, capsys, caplog):
    caplog.set_level(logging.DEBUG)
    said = raw(server, NONSENSE[name])
    assert CANARY.encode() not in said
    if said:
        head, _, body = said.partition(b"\r\n\r\n")
        assert re.match(rb"HTTP/1.1 4\d\d ", head), said[:200]
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    house.guard.flush()
    assert CANARY not in capsys.readouterr().err + caplog.text
    assert raw(server, b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )


def test_requests_in_one_go(house, server):
    "Pipelined: each is answered in turn, also the one behind a wrong one."
    good = json.dumps(WRITE).encode()
    said = raw(server, request(good) + request(b"[") + request(good))
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200", b"400", b"200"]
    check_serves(house)


LONG = b"Content-Type: application/json\r\nContent-Length: 100000000000\r\n\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
GOES_ON = {  # what is sent first, what then without an end, and the status
    "chunks": (CHUNKED + b"chunked\r\n\r\n", b"1\r\na\r\n" * 20_000, b"411"),
    "chunks without a key": (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
        b"Host: a\r\n\r\n", b"1\r\na\r\n" * 20_000, b"403"),
    "a long body": (POST + LONG, b" " * 100_000, b"413"),
    "another host": (POST.replace(b"localhost", b"a") + LONG, b" " * 100_000, b"403"),
    "no JSON": (POST + LONG.replace(b"json", b"x"), b" " * 100_000, b"415"),
    "a long body of a GET": (POST.replace(b"POST", b"GET") + LONG, b" " * 100_000, b"413"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOES_ON)
def test_a_body_that_goes_on_is_hung_up(house, server, name, monkeypatch):
    "At once, with the reason; of chunks not one is read."
    read = []
    next_event = h11.Connection.next_event

    def watched(self):
        read.append(next_event(self))
        return read[-1]

    monkeypatch.setattr(h11.Connection, "next_event", watched)
    begin, more, status = GOES_ON[name]
    with socket.create_connection(("127.0.0.1", server.port), 5) as one:
        one.sendall(begin + more)
        with pytest.raises(ConnectionError):
            for _ in range(1_000):
                one.sendall(more)
        said = one.recv(65_536)
    assert said.startswith(b"HTTP/1.1 " + status) and b"\r\nconnection: close\r\n" in said.lower()
    until(lambda: not server.server_state.connections)
    n_data = sum(isinstance(event, h11.Data) for event in read)
    assert n_data == 0 if b"Transfer" in begin else n_data < 20
    check_serves(house)


def test_slow_headers_and_silence(house, server):
    "Those who send nothing, a letter at a time, or a second request so, are hung up; others are served."
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    whole = head + b"\r\n"
    places = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(30)]
    for one in places[:10]:
        one.sendall(whole)
    start = time.time()
    until(lambda: len(server.server_state.connections) > 20)
    while len(server.server_state.connections) > 0:
        assert time.time() - start < 10
        for one in places[:20]:
            with suppress(OSError):
                one.send(b"G")
        time.sleep(0.05)
        if time.time() - start < 0.3:
            assert raw(server, b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n").startswith(
                b"HTTP/1.1 200"
            )
    for one in places:
        one.close()


def test_too_many_connections(house, server):
    places = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
    time.sleep(0.1)
    assert len(server.server_state.connections) <= LIMITS.connections
    for one in places:
        one.close()
    until(lambda: not server.server_state.connections)
    check_serves(house)


def test_a_reader_who_stands_still():
    guard = Guard(faulty_app(), LIMITS)
    with serving(guard, Loop(guard)) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as one:
            one.sendall(b"GET /pours HTTP/1.1\r\nHost: localhost\r\n\r\n")
            until(lambda: server.server_state.tasks)
            start = time.time()
            until(lambda: not server.server_state.connections and not server.server_state.tasks)
            assert time.time() - start < 10
        with socket.create_connection(("127.0.0.1", server.port)) as one:  # slow, but it moves
            one.sendall(b"GET /pours HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            n = 0
            while piece := one.recv(1 << 20):
                n += len(piece)
                time.sleep(0.01)
            assert n > 2_000 * 65_536


STREAM = json.dumps(WRITE | {"stream": True, "max_tokens": 8, "n": 2}).encode()


@pytest.mark.parametrize("how", ["closed", "half closed", "reset", "more behind"])
def test_clients_who_go_away(house, server, how):
    for _ in range(20):
        one = socket.create_connection(("127.0.0.1", server.port))
        one.sendall(request(STREAM))
        if how == "more behind":  # then uvicorn stops to read, and cannot see the end
            one.sendall(request(b"[") * 200)
        if how == "half closed":
            one.shutdown(socket.SHUT_WR)
            while one.recv(65_536):
                pass
        if how == "reset":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        one.close()
    until(lambda: not server.server_state.connections and not server.server_state.tasks)
    check_serves(house)


def test_a_thousand_who_leave_in_the_middle(house, server):
    n_tokens = house.engine.counts["tokens_written"]
    for _ in range(1_000):
        until(lambda: house.engine.counts["waiting"] < 32)
        with socket.create_connection(("127.0.0.1", server.port)) as one:
            one.sendall(request(STREAM))
            assert one.recv(1_024).startswith(b"HTTP/1.1 200")
    until(lambda: not server.server_state.connections and not server.server_state.tasks)
    assert house.engine.counts["tokens_written"] > n_tokens
    check_serves(house)


# Nothing of a request opens a file.

OPENED = []
WATCHED = set()


def _watch(event, args):
    if threading.get_ident() in WATCHED and event in (
        "open",
        "os.listdir",
        "os.scandir",
        "os.chdir",
    ):
        OPENED.append((event, str(args[:1])))


def test_no_request_opens_a_file(house):
    "Heard by an audit hook, in the thread that serves and those that it starts."
    outside = ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/../settings.ini")
    paths = [start + path for path in outside for start in ("", "/v1/models")]
    bodies = [WRITE, WRITE | {"model": "/etc/passwd"}, WRITE | {"prompt": "file:///etc/passwd"}]

    def visit():
        for path in paths:
            house.loop.send("GET", path)
        for body in bodies:
            house.loop.post("/v1/completions", body)
        house.loop.post("/v1/chat/completions", TALK)
        house.loop.post("/verdict", {"text": "One day, Mia"})
        for path in (*PAGE_FILES, "/about", "/health", "/metrics", "/v1/models", "/openapi.json"):
            house.loop.send("GET", path)

    visit()  # what is imported at first use is there then
    sys.addaudithook(_watch)
    WATCHED.update(
        thread.ident for thread in threading.enumerate() if thread is not threading.main_thread()
    )
    with open("/dev/null"):
        pass
    assert OPENED == []
    visit()
    WATCHED.clear()
    assert OPENED == []


# Over the app's own schema.


def test_the_schema_holds_our_requests(house):
    answer = house.loop.send("GET", "/openapi.json").json()
    for path, model in (
        ("/v1/completions", "CompletionRequest"),
        ("/v1/chat/completions", "ChatRequest"),
    ):
        body = answer["paths"][path]["post"]["requestBody"]["content"]
        assert list(body) == ["application/json"]
        assert body["application/json"]["schema"]["$ref"].endswith(model)
    assert "422" not in json.dumps(answer)


def send_case(house, case):
    "Send what schemathesis made up."
    how = case.as_transport_kwargs(base_url="http://localhost")
    how["content"] = how.get("data")
    names = ("method", "url", "params", "headers", "json", "content")
    how = {name: how[name] for name in names if how.get(name) is not None}
    return house.loop.run(house.loop.client.request(**how))


def check_answer(answer):
    "One of the documented forms, and never a 5xx."
    if answer.status_code != 200:
        return check_refused(answer)
    kind = answer.headers["content-type"].partition(";")[0]
    if kind == "text/event-stream":
        assert answer.text.endswith("data: [DONE]\n\n")
    if kind == "application/json":
        kinds = ("list", "model", "text_completion", "chat.completion")
        assert answer.json().get("object") in kinds or "verdict" in answer.json()


KINDS = [(path, mode) for path in (*BODIES, "/verdict") for mode in GenerationMode]
KINDS.append(("/v1/models/{name}", GenerationMode.POSITIVE))


def fuzz_one(house, operation, mode, n_cases, number):
    "The statuses of cases that fit the schema, half of them for our model, or of such that do not."
    statuses = []

    @seed(number)
    @settings(
        max_examples=n_cases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case):
        if isinstance(case.body, dict) and len(statuses) % 2:
            case.body["model"] = "tiny"
        answer = send_case(house, case)
        check_answer(answer)
        statuses.append(answer.status_code)

    each()
    return statuses


def fuzz(house, n_cases, number):
    "The statuses of many cases, by what was asked; then the server is as it was."
    schema = schemathesis.openapi.from_dict(house.app.openapi())
    seen = {}
    for path, mode in KINDS:
        operation = schema[path]["GET" if "{" in path else "POST"]
        n = -(-n_cases // len(KINDS))
        seen[path, mode.value] = fuzz_one(house, operation, mode, n, number)
    check_serves(house)
    return seen


def test_a_thousand_cases(house, capsys):
    seen = fuzz(house, 1_000, number=1)
    assert sum(map(len, seen.values())) >= 1_000
    lines_of(capsys.readouterr().err)
    assert seen["/v1/completions", "positive"].count(200) > 20


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_a_hundred_thousand_cases(house, number):
    assert sum(map(len, fuzz(house, 10_000, number).values())) >= 10_000
