"""Write for 32 readers at once, and print a table: over HTTP, by the engine alone, as one batch, and
by `transformers serve`, from the same weights, in one run.

    python benchmarks/serving.py                              # two models, 32 streams
    python benchmarks/serving.py --models bundled --streams 8
    python benchmarks/serving.py --no-http                    # the engine alone

The models are the bundled one, and one of 12 layers, width 768 and random weights with the same
tokenizer. All sides write the same number of tokens after the same prompts, greedily, in float32,
and none ends early. The engine gives each text the bits that it has alone, but where fixed=False
stands. A batch of `generate_batch` is the measure: it knows all its texts in advance.
Every figure is the median of several rounds, in which all sides run in turn. The reader of the
streams is this process, on the same cores as the server.

`transformers serve` runs where its requirements are there (`pip install accelerate`), as it is and
with --continuous-batching; elsewhere transformers' `generate` writes the texts one after another.
"""

import argparse
import asyncio
import copy
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

import torch
from in_turn import measure_in_turn, median_ratio

import llm_course
from llm_course.batching import Engine
from llm_course.checkpoint import load_model, save_checkpoint
from llm_course.corpus import Tales
from llm_course.cost import parameter_count
from llm_course.engine import SamplingParams
from llm_course.fast import optimize_for_decoding
from llm_course.gpt import GPT
from llm_course.model_config import GPTConfig
from llm_course.passes import Finished
from llm_course.pretrained import to_pretrained
from llm_course.sampling import generate
from llm_course.throughput import has_compiler
from llm_course.writing import generate_batch, prompt_ids

BATCH = "generate_batch"
ONE = "generate, one stream, compiled"
ENGINE = "Engine"
FREE = "Engine, fixed=False"
OURS = "llm_serve"
THEIRS = "transformers serve"
THEIRS_BATCHED = "transformers serve, batching"
THEIR_LOOP = "transformers generate, in a loop"
GREEDY = SamplingParams(temperature=0)
LARGE = dict(n_layers=12, n_heads=12, d_model=768, max_seq_len=480)
Write = Callable[[list[str]], object]  # writes after each of these prompts


class Bench(NamedTuple):
    "A model, and how much is written with it."

    name: str
    plain: GPT
    model: GPT  # optimized for decoding
    tokenizer: Any
    n: int  # new tokens of each text

    def ids(self, prompt: str) -> list[int]:
        return prompt_ids(self.model, self.tokenizer, prompt)


class Answer(NamedTuple):
    "What a reader of a stream saw."

    first: float  # seconds to the first token
    n_tokens: int


def load_bench(name: str, args: argparse.Namespace) -> Bench:
    plain, tokenizer = load_model()
    if name == "large":
        torch.manual_seed(0)
        plain = GPT(GPTConfig.llama(vocab_size=tokenizer.vocab_size, **LARGE)).eval()
    n = args.new_tokens if name == "bundled" else args.new_tokens // 4
    return Bench(name, plain, optimize_for_decoding(copy.deepcopy(plain)), tokenizer, n)


def beginnings(tokenizer: Any, n: int, n_tokens: int, seed: int) -> list[str]:
    "Beginnings of stories, of about so many tokens, that are others for another seed."
    stories = iter(Tales().generate(n * (1 + n_tokens // 40), seed=seed))
    found = []
    for _ in range(n):
        ids = []
        while len(ids) < n_tokens:
            ids += tokenizer.encode_ordinary(next(stories))
        found.append(tokenizer.decode(ids[:n_tokens]))
    return found


# The engine, spoken to directly


def ask_engine(engine: Engine, ids: list[int], n: int) -> Callable[[], int]:
    "Let a text be written; returns what waits for its end, and gives its number of tokens."
    done = threading.Event()
    seen = []

    def deliver(item: Any) -> None:
        seen.append(item)
        if isinstance(item, Finished):
            done.set()

    def wait() -> int:
        done.wait()
        return len(seen) - 1

    engine.submit(ids, n, params=GREEDY, deliver=deliver)
    return wait


def write_by_engine(engine: Engine, bench: Bench, prompts: list[str]) -> None:
    waiting = [ask_engine(engine, bench.ids(prompt), bench.n) for prompt in prompts]
    for wait in waiting:
        assert wait() == bench.n, "the engine stopped early"


def first_by_engine(engine: Engine, bench: Bench, prompt: str) -> float:
    "Seconds to the first token of a text."
    ids = bench.ids(prompt)
    start = time.perf_counter()
    ask_engine(engine, ids, 1)()
    return time.perf_counter() - start


# A server, spoken to over HTTP


class Server(NamedTuple):
    "A server, and what its readers saw."

    address: str
    name: str  # of the model
    seen: list[Answer]
    more: dict  # what its requests say besides


async def read_stream(server: Server, prompt: str, n: int) -> Answer:
    "Ask for a text and read it as it is written."
    body = {"model": server.name, "prompt": prompt, "max_tokens": n, "temperature": 0}
    body |= {"stream": True, "stream_options": {"include_usage": True}} | server.more
    data = json.dumps(body).encode()
    host, port = server.address.removeprefix("http://").split(":")
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    reader, writer = await asyncio.open_connection(host, int(port))
    start = time.perf_counter()
    writer.write(head.encode() + data)
    status = await reader.readline()
    assert b" 200 " in status, status + await reader.read()
    first = None
    n_tokens = 0
    async for line in reader:
        if not line.startswith(b"data: {"):
            continue
        if first is None:
            first = time.perf_counter() - start
        if b'"completion_tokens"' in line:
            n_tokens = json.loads(line[6:])["usage"]["completion_tokens"]
    writer.close()
    assert first is not None and n_tokens == n, f"{server.name} wrote {n_tokens} tokens, not {n}"
    return Answer(first, n_tokens)


def write_over_http(server: Server, n: int, prompts: list[str]) -> None:
    "All of them at once."

    async def read_all() -> list[Answer]:
        return await asyncio.gather(*(read_stream(server, prompt, n) for prompt in prompts))

    server.seen.extend(asyncio.run(read_all()))


def first_over_http(server: Server, prompt: str) -> float:
    "Seconds to the first token of a text."
    return asyncio.run(read_stream(server, prompt, 1)).first


@contextmanager
def our_server(folder: Path, bench: Bench, n_rows: int) -> Iterator[Server]:
    "llm_serve as a process."
    words = [sys.executable, "-m", "llm_course.cli", "serve", folder, "--port", 0]
    words += ["--name", "bench", "--rows", n_rows]
    said = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    process = subprocess.Popen(list(map(str, words)), **said)
    assert process.stdout is not None
    try:
        found = None
        while found is None:
            line = process.stdout.readline()
            assert line, "llm_serve did not start"
            found = re.search(r"http://[\d.]+:\d+", line)
        never_ends = {str(bench.tokenizer.eos_id): -100}
        yield Server(found[0], "bench", [], {"logit_bias": never_ends})
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def their_server(folder: Path, *options: str) -> Iterator[Server]:
    "transformers serve as a process."
    port = free_port()
    words = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    words += ["--device", "cpu", "--dtype", "float32", "--port", str(port), *options]
    with tempfile.TemporaryFile("w+") as said:
        env = os.environ | {"HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(words, env=env, stdout=said, stderr=subprocess.STDOUT)
        server = Server(f"http://127.0.0.1:{port}", str(folder), [], {})
        try:
            for _ in range(240):
                assert process.poll() is None, "transformers serve did not start"
                try:
                    urlopen(f"{server.address}/health").read()
                    break
                except URLError:
                    time.sleep(0.5)
            yield server
        finally:
            process.terminate()
            process.wait(60)


def their_folder(folder: Path, bench: Bench) -> Path:
    "The weights as transformers reads them, of a model that ends at no token."
    to_pretrained(folder, bench.plain, bench.tokenizer)
    for path in (folder / "generation_config.json", folder / "config.json"):
        config = json.loads(path.read_text())
        config.pop("eos_token_id", None)
        path.write_text(json.dumps(config))
    return folder


def write_in_their_loop(model: Any, bench: Bench, prompts: list[str]) -> None:
    for prompt in prompts:
        ids = torch.tensor([bench.ids(prompt)])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=bench.n,
            do_sample=False,
            pad_token_id=0,
        )
        assert out.shape[1] == ids.shape[1] + bench.n


# The table


def their_sides(folder: Path, bench: Bench, stack: ExitStack) -> Iterator[tuple[str, Write]]:
    "What there is of transformers here."
    if find_spec("accelerate") is None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        yield THEIR_LOOP, partial(write_in_their_loop, model, bench)
        return
    for name, options in ((THEIRS, ()), (THEIRS_BATCHED, ("--continuous-batching",))):
        server = stack.enter_context(their_server(folder, *options))
        yield name, partial(write_over_http, server, bench.n)


def one_stream(model: Any, bench: Bench, prompts: list[str]) -> None:
    for _ in generate(model, bench.ids(prompts[0]), bench.n, temperature=0):
        pass


def one_batch(bench: Bench, prompts: list[str]) -> None:
    generate_batch(bench.model, list(map(bench.ids, prompts)), bench.n, temperature=0)


def in_rounds(write: Write, rounds: list[list[str]]) -> Callable[[], object]:
    "Call `write` with other prompts at each round: a prefix cache knows none of them."
    prompts = iter(rounds)
    return lambda: write(next(prompts))


def say_speed(bench: Bench, times: dict[str, list[float]], n_streams: int) -> None:
    for name, seconds in times.items():
        n_texts = 1 if name == ONE else n_streams
        share = n_texts / n_streams
        speed = n_texts * bench.n / statistics.median(seconds)
        line = f"  {name:34}{speed:10,.0f} tokens/s"
        line += f"{share * median_ratio(seconds, times[BATCH]):8.2f} times {BATCH}"
        if ONE in times:
            ratio = median_ratio(seconds, times[ONE]) * n_texts
            line += f"{ratio:8.2f} times one stream"
        print(line)


def say_first(name: str, firsts: list[float], what: str) -> None:
    times = sorted(1e3 * first for first in firsts)
    p50 = times[len(times) // 2]
    p99 = times[min(len(times) - 1, int(0.99 * len(times)))]
    print(f"  {name:34}p50 {p50:8,.1f} ms   p99 {p99:8,.1f} ms   ({what})")


def say_prefix(name: str, first: Callable[[str], float], pairs: list[str]) -> None:
    "Ask twice for what begins alike."
    times = [(first(text + " Mia and"), first(text + " Tom or")) for text in pairs]
    ratio = statistics.median(after / before for before, after in times)
    before, after = (1e3 * statistics.median(column) for column in zip(*times))
    print(f"  {name:34}{before:8.1f} ms, then {after:8.1f} ms: {ratio:.2f} of it")


def compare(bench: Bench, args: argparse.Namespace, stack: ExitStack) -> None:
    "Print what each side writes in a second, and how long a first token takes."
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    rounds = [
        beginnings(bench.tokenizer, args.streams, args.prompt, seed)
        for seed in range(args.repeats + 1)
    ]
    engine = Engine(bench.model, n_rows=args.streams)
    engine.start()
    stack.callback(engine.stop, 10)
    writes: dict[str, Write] = {BATCH: partial(one_batch, bench)}
    if args.compile:
        compiled = optimize_for_decoding(copy.deepcopy(bench.plain), compiled=True)
        writes[ONE] = partial(one_stream, compiled, bench)
    writes[ENGINE] = partial(write_by_engine, engine, bench)
    free = Engine(bench.model, n_rows=args.streams, fixed=False)
    free.start()
    stack.callback(free.stop, 10)
    writes[FREE] = partial(write_by_engine, free, bench)
    server = None
    if args.http:
        checkpoint = save_checkpoint(folder, 0, bench.plain, bench.tokenizer)
        server = stack.enter_context(our_server(checkpoint, bench, args.streams))
        writes[OURS] = partial(write_over_http, server, bench.n)
        if args.transformers:
            writes.update(their_sides(their_folder(folder / "theirs", bench), bench, stack))
    runs = {name: in_rounds(write, rounds) for name, write in writes.items()}
    times = measure_in_turn(runs, args.repeats, warm_up=True)
    size = f"{parameter_count(bench.plain):,} parameters"
    shape = f"{bench.plain.config.n_layers} layers, width {bench.plain.config.d_model}"
    print(f"\n{bench.name}: {size}, {shape}, {args.streams} texts at once, prompt {args.prompt}, ", end="")
    print(f"{bench.n} new tokens, greedy; medians of {args.repeats} rounds, in turn")
    say_speed(bench, times, args.streams)
    pairs = beginnings(bench.tokenizer, args.pairs, args.prefix, seed=901)
    alone = beginnings(bench.tokenizer, 5 * args.pairs, args.prompt, seed=902)
    print("first token")
    if server is not None:
        say_first(OURS, [answer.first for answer in server.seen[args.streams :]], "all at once")
        firsts = [first_over_http(server, prompt) for prompt in alone]
        say_first(OURS, firsts, "one at a time")
    say_first(ENGINE, [first_by_engine(engine, bench, prompt) for prompt in alone], "one at a time")
    print(f"first token after {args.prefix} tokens, then after the same ones; {args.pairs} pairs")
    say_prefix(ENGINE, partial(first_by_engine, engine, bench), pairs)
    if server is not None:
        say_prefix(OURS, partial(first_over_http, server), pairs)


def versions() -> str:
    found = []
    for name in ("torch", "fastapi", "uvicorn", "transformers", "accelerate"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=["bundled", "large"], default=["bundled", "large"])
    parser.add_argument("--streams", type=int, default=32, help="texts at once")
    parser.add_argument("--prompt", type=int, default=32, help="its tokens")
    parser.add_argument("--new-tokens", type=int, default=128, help="of the large model a quarter")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--prefix", type=int, default=200, help="tokens that two prompts share")
    parser.add_argument("--pairs", type=int, default=10, help="how many such pairs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-http", action="store_true", help="the engine alone")
    parser.add_argument("--no-transformers", action="store_true")
    args = parser.parse_args()
    args.compile = has_compiler() and not args.no_compile
    args.http = not args.no_http
    args.transformers = not args.no_transformers
    return args


def main() -> None:
    args = parsed_arguments()
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of the servers
    print(f"python {platform.python_version()}, {versions()}, llm_course {llm_course.__version__}; ", end="")
    print(f"{platform.machine()} CPU, {args.threads} threads of {os.cpu_count()} cores")
    if not args.compile:
        print(f"not compiled: {'as asked' if args.no_compile else 'there is no C++ compiler'}")
    for name in args.models:
        with ExitStack() as stack:
            compare(load_bench(name, args), args, stack)


if __name__ == "__main__":
    main()
