"llm_serve as a process: it answers, goes over to a newer model, ends as a signal asks; and it refuses."

import configparser
import json
import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch
from shared import wait_for

from llm_course.checkpoint import load_model, save_checkpoint
from llm_course.gpt import GPT
from llm_course.model_config import GPTConfig
from llm_course.serve import llm_serve

ROOT = Path(__file__).parent.parent
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
KEY = "a key of this test"


class Server:
    "A process, and what it said."

    def __init__(self, folder, *words, **env):
        command = [sys.executable, "-m", "llm_course.cli", "serve", "--port", "0", *map(str, words)]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(command, cwd=folder, env=ENV | env, **pipes)
        self.said = []
        self.errors = []
        for stream, lines in ((self.process.stdout, self.said), (self.process.stderr, self.errors)):
            threading.Thread(target=lines.extend, args=(stream,), daemon=True).start()

    def ready(self):
        wait_for(lambda: "http" in "".join(self.said), self.process)
        port = re.search(r"http://[\d.]+:(\d+)", "".join(self.said))[1]
        self.address = f"http://127.0.0.1:{port}"
        return self

    def open(self, path, **body):
        "An answer, to be read; of a request with a body where there is one."
        data = json.dumps(body).encode() if body else None
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        return urlopen(Request(self.address + path, data, headers), timeout=30)

    def write(self, n=5, **more):
        body = {"model": "served", "prompt": "One day", "max_tokens": n, "seed": 1}
        return self.open("/v1/completions", **body, **more)

    def fingerprint(self):
        return json.load(self.write())["system_fingerprint"]

    def stop(self, *numbers):
        "Send signals; the exit code."
        for number in numbers:
            self.process.send_signal(number)
            time.sleep(0.2)
        return self.process.wait(20)


class Stream(threading.Thread):
    "A reader of a long text."

    def __init__(self, server, n):
        super().__init__(daemon=True)
        never = {"logit_bias": {str(server.end): -100}, "stream": True}
        self.answer = server.write(n, stream_options={"include_usage": True}, **never)
        self.events = []
        self.start()

    def run(self):
        for line in self.answer:
            if line.startswith(b"data: {"):
                self.events.append(json.loads(line[6:]))
            if line == b"data: [DONE]\n":
                self.events.append("done")

    def check(self, n):
        "It came whole, and from one model."
        self.join(100)
        *events, end = self.events
        assert end == "done" and events[-1]["usage"]["completion_tokens"] == n
        assert len({event["system_fingerprint"] for event in events}) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def models(folder):
    "A model that writes long texts, its tokenizer, and a run that it is the first checkpoint of."
    tokenizer = load_model()[1]
    shape = dict(n_layers=1, n_heads=2, d_model=64, max_seq_len=2000)
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape))
    save_checkpoint(folder / "run", 1, model, tokenizer)
    return model, tokenizer


@pytest.fixture(scope="module")
def servers(folder, models):
    "Both start at the same time: one of a checkpoint, and one that follows a run, behind a key."
    follows = ("run", "--name", "served", "--reload", "--host", "0.0.0.0", "--rows", 4)
    found = [Server(folder, "run/step-0000001", "--name", "served", "--rows", 4)]
    found.append(Server(folder, *follows, LLM_SERVE_KEY=f" {KEY}\r\n"))
    for server in found:
        server.ready().end = models[1].eos_id
    yield found
    for server in found:
        server.process.kill()


def test_a_signal_lets_a_stream_end(servers):
    server = servers[0]
    assert "served      run/step-0000001" in server.said[0] and len(server.said) == 2
    assert json.load(server.write())["usage"]["completion_tokens"] == 5
    assert server.open("/").headers["Content-Type"].startswith("text/html")
    stream = Stream(server, 1000)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    for ask in (lambda: server.open("/health"), server.write):
        with pytest.raises(HTTPError, match="503"):
            ask()
    stream.check(1000)
    assert server.process.wait(10) == 0
    assert not [line for line in server.errors if not line.startswith("{")]


def test_a_newer_model_is_served_and_a_stream_ends_on_the_old_one(servers, folder, models):
    server = servers[1]
    model, tokenizer = models
    with pytest.raises(HTTPError, match="401"):
        urlopen(f"{server.address}/v1/models")
    assert urlopen(f"{server.address}/favicon.ico").status == 204  # without a key, as the page
    old = server.fingerprint()
    stream = Stream(server, 1500)
    torch.nn.init.normal_(model.lm_head.weight)
    save_checkpoint(folder / "run", 2, model, tokenizer)
    wait_for(lambda: server.fingerprint() != old, server.process)
    n_events = len(stream.events)
    stream.check(1500)
    assert stream.events[0]["system_fingerprint"] == old and n_events < len(stream.events)
    new = server.fingerprint()
    broken = save_checkpoint(folder / "run", 3, model, tokenizer) / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-100])
    wait_for(lambda: "what is new is not served" in "".join(server.errors), server.process)
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    save_checkpoint(folder / "run", 4, model, tokenizer)
    wait_for(lambda: "weights that are no numbers" in "".join(server.errors), server.process)
    assert "model.safetensors" in "".join(server.errors) and server.fingerprint() == new


def test_a_second_signal_ends_it_at_once(servers):
    server = servers[1]
    Stream(server, 1500)
    start = time.monotonic()
    assert server.stop(signal.SIGINT, signal.SIGTERM) == 128 + signal.SIGTERM
    assert time.monotonic() - start < 2
    assert server.errors[-1] == "llm_serve: interrupted\n"


def test_refusals(capsys, folder, models, monkeypatch):
    monkeypatch.chdir(folder)
    save_checkpoint("mute", 1, models[0])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, sentence in {
            f"--port {port}": f"--port {port} cannot be had",
            "--port 70000": "--port 70000 cannot be had",
            "--host 0.0.0.0 --port 0": "--host 0.0.0.0 can be reached by others: give --api-key",
            "--host nowhere.invalid": "--host nowhere.invalid --port 8000 cannot be had",
            "--port 0 nothing": "nothing does not exist: give a run, or a checkpoint in it.",
            "--port 0 mute": "has no tokenizer",
            "--port 0 run/step-0000001 --rows 0": "n_rows must be a whole number of at least 1, not 0.",
            "--port soon": "argument --port: invalid int value: 'soon'",
            "train.max_steps=3 --port 0": "train.max_steps=3 does not exist",
        }.items():
            assert llm_serve(shlex.split(words)) == 2, words
            said = capsys.readouterr().err
            assert sentence in said and said.count("\n") == 1 and len(said) <= 301, said
    for key in ("", " ", "\r\n", "sésame", "a\tb"):
        monkeypatch.setenv("LLM_SERVE_KEY", key)
        for name, words in {"$LLM_SERVE_KEY": [], "--api-key": ["--api-key", key]}.items():
            assert llm_serve(words) == 2
            says = f"llm_serve: {name} must be of printable ASCII, and not empty: give another one.\n"
            assert capsys.readouterr().err == says


def test_without_the_extra_it_says_what_to_install():
    code = """
import sys

class Missing:
    def find_spec(self, name, path, target=None):
        if name == "fastapi":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv = ["cli.py", "serve"]
from llm_course.commands import main
sys.exit(main())
"""
    run = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == "llm_serve: fastapi is missing: pip install 'llm_course[serve]'.\n"


def instructions():
    "The Dockerfile's, each with what follows it."
    text = (ROOT / "configs" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def test_the_image_is_of_the_wheel_alone():
    found = instructions()
    assert [what for name, what in found if name in ("COPY", "ADD")] == ["llm_course-*.whl /tmp/"]
    entry = json.loads(dict(found)["ENTRYPOINT"])
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    assert f"{entry[0]}=llm_course.commands:{entry[0]}" in settings["DEFAULT"]["console_scripts"]
    installs = [what for name, what in found if name == "RUN" and "pip install" in what]
    assert "download.pytorch.org/whl/cpu" in installs[0] and '.whl)[serve]"' in installs[1]
    names = [name for name, _ in found]
    assert names.index("USER") < names.index("ENTRYPOINT") and "root" not in dict(found)["USER"]
    program = json.loads(dict(found)["HEALTHCHECK"].partition("CMD ")[2])[2]
    compile(program, "HEALTHCHECK", "exec")
    assert f":{dict(found)['EXPOSE']}/health" in program


def has_docker():
    "Whether there is a daemon to build with."
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, timeout=60).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not has_docker(), reason="no Docker daemon is here")
def test_the_image_serves(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    image = ["docker", "build", "-q", "-f", ROOT / "configs" / "Dockerfile", tmp_path]
    name = subprocess.run(image, check=True, capture_output=True, text=True, timeout=1800).stdout
    refused = subprocess.run(["docker", "run", "--rm", name.strip()], capture_output=True, text=True)
    assert refused.returncode == 2 and "give --api-key" in refused.stderr
    start = ["docker", "run", "--rm", "-d", "-e", f"LLM_SERVE_KEY={KEY}", "-p", "127.0.0.1::8000"]
    container = subprocess.check_output([*start, name.strip()], text=True).strip()
    try:
        address = subprocess.check_output(["docker", "port", container, "8000"], text=True).strip()
        for _ in range(120):
            try:
                assert urlopen(f"http://{address}/health").status == 200
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise AssertionError("the container did not answer")
    finally:
        subprocess.run(["docker", "stop", container], check=True, capture_output=True)
