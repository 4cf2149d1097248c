"""Train and write with one model in PyTorch and in JAX, from the same weights, in one run on one
machine, and print a table.

    python benchmarks/in_jax.py                    # the course's default shape; some minutes
    python benchmarks/in_jax.py --no-compile       # where PyTorch has no C++ compiler
    python benchmarks/in_jax.py --layers 12 --heads 12 --width 768 --seq-len 1024 --vocab-size 50304

It runs where both libraries are (`make jax`), and on a GPU where both see one; else both use the
cores that this process may use (`taskset -c 0` leaves one). The sides run in turn, because a shared
machine changes its speed, and every figure is the median of several rounds; what the first call
takes, compiling included, is said beside it. Products are float32 on both sides; with --precision
tensorfloat32 a GPU may round them to TF32, on both sides.

A training step is forward, loss, backward, clip and AdamW on the same batch; the losses are compared.
Writing is greedy, with a cache, and the ids are compared: PyTorch is asked by Python for each token
(compiled for one text on a CPU alone), JAX runs one compiled loop.
"""

import argparse
import copy
import os
import platform
import time
from collections.abc import Callable, Iterator
from itertools import islice, repeat
from statistics import median

import jax
import torch
from in_turn import measure_in_turn, median_ratio

from llm_course.cost import parameter_count
from llm_course.fast import optimize_for_decoding
from llm_course.gpt import GPT
from llm_course.jax_gpt import from_torch
from llm_course.jax_sampling import generate_jax
from llm_course.jax_training import train_jax
from llm_course.model_config import GPTConfig
from llm_course.packing import Batch
from llm_course.settings import TrainConfig
from llm_course.throughput import has_compiler, optimize_for_training
from llm_course.training import train
from llm_course.writing import generate_batch

EAGER = "PyTorch, eager"
COMPILED = "PyTorch, compiled"
JAX = "JAX, compiled"
MATMUL = {"float32": "highest", "tensorfloat32": "high"}  # JAX's name to PyTorch's


def n_cores() -> int:
    "How many cores this process may use: JAX takes them all."
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pick_device() -> str:
    "The kind of device that both sides compute on."
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave room for PyTorch
    torch.set_num_threads(n_cores())
    if not torch.cuda.is_available():
        jax.config.update("jax_platforms", "cpu")
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def print_machine(device: str, args: argparse.Namespace) -> None:
    "Say what the figures are of."
    versions = f"torch {torch.__version__}, jax {jax.__version__}"
    chip = f"{platform.machine()} CPU, {n_cores()} of {os.cpu_count()} cores"
    if device == "cuda":
        chip = torch.cuda.get_device_name()
    print(f"Python {platform.python_version()}, {versions}; {chip}")
    print(f"{args.precision} products; medians of {args.repeats} rounds, in turn")


def in_steps(loop: Iterator, n: int) -> Callable[[], float]:
    "A function that makes `n` steps of a run, taken up again at every call: the last step's loss."
    return lambda: list(islice(loop, n))[-1].loss


def trainers(model: GPT, device: str, args: argparse.Namespace) -> dict[str, Callable]:
    "For each side a function that makes `--steps` optimizer steps."
    shape = (args.batch_size, args.seq_len + 1)
    ids = torch.randint(args.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    batches = repeat(Batch(ids[:, :-1], ids[:, 1:]))
    settings = dict(
        max_steps=args.steps * (2 + args.repeats),
        optimizer="adamw",
        lr=1e-3,
        warmup_steps=0,
        device=device,
    )
    loops = {}
    for name in [EAGER, COMPILED] if args.compile else [EAGER]:
        ours = copy.deepcopy(model)
        optimize_for_training(ours)
        config = TrainConfig(**settings, compile=name == COMPILED)
        loops[name] = train(ours, batches, config)
    loops[JAX] = train_jax(from_torch(model), batches, TrainConfig(**settings))
    return {name: in_steps(loop, args.steps) for name, loop in loops.items()}


def writers(model: GPT, device: str, n_texts: int, args: argparse.Namespace) -> dict[str, Callable]:
    "For each side a function that writes `--new-tokens` greedy ids after `n_texts` prompts."
    shape = (n_texts, args.prompt)
    prompts = torch.randint(args.vocab_size, shape, generator=torch.Generator().manual_seed(1))
    prompts = prompts.tolist()
    in_jax = from_torch(model)
    fast = {EAGER: optimize_for_decoding(copy.deepcopy(model).to(device))}
    if args.compile and n_texts == 1 and device == "cpu":
        fast[COMPILED] = optimize_for_decoding(copy.deepcopy(model), compiled=True)

    def in_torch(name: str) -> Callable:
        return lambda: generate_batch(fast[name], prompts, args.new_tokens, temperature=0)

    found = {name: in_torch(name) for name in fast}
    found[JAX] = lambda: generate_jax(in_jax, prompts, args.new_tokens, temperature=0)
    return found


def compare(title: str, runs: dict[str, Callable], n_tokens: int, repeats: int) -> dict:
    "Print each side's speed; what each first call returned."
    print(f"\n{title}")
    first = {}
    seconds_first = {}
    for name, run in runs.items():
        start = time.perf_counter()
        first[name] = run()
        seconds_first[name] = time.perf_counter() - start
    seconds = measure_in_turn(runs, repeats)
    for name, values in seconds.items():
        speed = f"{n_tokens / median(values):12,.0f} tokens/s"
        ratio = f"{median_ratio(values, seconds[EAGER]):7.2f} times {EAGER}"
        print(f"  {name:20}{speed}{ratio}, first call {seconds_first[name]:.1f} s")
    return first


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps in each round")
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 32], help="how many at once")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--precision", choices=MATMUL, default="float32")
    parser.add_argument("--no-compile", action="store_true", help="PyTorch eager alone")
    args = parser.parse_args()
    args.compile = has_compiler() and not args.no_compile
    return args


def main() -> None:
    args = parsed_arguments()
    device = pick_device()
    torch.set_float32_matmul_precision(MATMUL[args.precision])
    jax.config.update("jax_default_matmul_precision", args.precision)
    print_machine(device, args)
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=args.vocab_size,
        max_seq_len=max(args.seq_len, args.prompt + args.new_tokens),
        n_layers=args.layers,
        n_heads=args.heads,
        d_model=args.width,
    )
    model = GPT(config).eval()
    shape = f"{args.layers} layers, {args.heads} heads, width {args.width}"
    print(f"{parameter_count(model):,} parameters, {shape}, vocabulary {args.vocab_size:,}")
    if not args.compile:
        print("PyTorch is not compiled: " + ("as asked" if args.no_compile else "no C++ compiler"))

    tokens = args.batch_size * args.seq_len
    title = f"training, {args.steps} steps of {args.batch_size} x {args.seq_len} tokens"
    losses = compare(title, trainers(model, device, args), tokens * args.steps, args.repeats)
    said = " · ".join(f"{name} {loss:.5f}" for name, loss in losses.items())
    print(f"  loss of step {args.steps}: {said}")
    for n_texts in args.texts:
        title = f"writing, {n_texts} x {args.new_tokens} tokens after {args.prompt}, greedy"
        runs = writers(model, device, n_texts, args)
        texts = compare(title, runs, n_texts * args.new_tokens, args.repeats)
        same = sum(row == other for row, other in zip(texts[JAX], texts[EAGER], strict=True))
        print(f"  the same ids in both: {same} of {n_texts}")


if __name__ == "__main__":
    main()
