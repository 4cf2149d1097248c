"""Write with this course's `generate` and with transformers' `generate`, from the same weights, in one run, and print a table.

    python benchmarks/generation.py                        # 12 million weights, prompt 16, 256 new tokens, one text and 32
    python benchmarks/generation.py --threads 1
    python benchmarks/generation.py --no-compile --sample  # draw at temperature 1 instead of taking the likeliest

Both sides have a cache, float32, the same prompt and number of tokens; the greedy ids are compared and must be the same. Every figure
is the median of several runs, taken in turn (the first one first and last by turns), because a shared machine changes its speed.

The limit: a token needs every matrix once, so one text cannot be written faster than the weights can be read. How fast that is comes
from the sum of a buffer many times larger than the processor's caches, on the same threads, in turn with the runs: a sum reads each
number once, in order, and does nearly nothing else. (A matrix-vector product would do as well, but a slow one would flatter us.)
"""
import argparse
import copy
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import llm_course
from llm_course.attention import Linear
from llm_course.decoding import Int8Linear, quantize_int8
from llm_course.gpt import GPT, GPTConfig, matmul_weights, parameter_count
from llm_course.pretrained import to_pretrained
from llm_course.sampling import generate, generate_batch
from llm_course.training import has_compiler

THEIRS = "transformers, float32, eager"
OURS = "llm_course, float32, eager"
OURS_INT8 = "llm_course, int8, eager"
OURS_COMPILED = "llm_course, float32, compiled"


def their_model(model: GPT) -> nn.Module:
    "The same weights as a transformers model that ends at no token."
    with tempfile.TemporaryDirectory() as folder:
        to_pretrained(folder, model)
        theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    theirs.generation_config.eos_token_id = None
    return theirs


def write_ours(model: nn.Module, prompts: Tensor, n: int, sample: bool) -> list[list[int]]:
    settings = dict(temperature=1.0 if sample else 0.0)
    if len(prompts) == 1: return [list(generate(model, prompts[0], n, **settings))]
    return generate_batch(model, prompts, n, **settings)


def write_theirs(model: nn.Module, prompts: Tensor, n: int, sample: bool) -> list[list[int]]:
    drawing = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0) if sample else dict(do_sample=False)
    out = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=n, use_cache=True, pad_token_id=0, **drawing)
    return out[:, prompts.shape[1]:].tolist()


def contestants(model: GPT, prompts: Tensor, args: argparse.Namespace) -> dict[str, Callable]:
    "For each side a function that writes, warmed up; what it wrote is checked."
    theirs, whole = their_model(model), quantize_int8(copy.deepcopy(model))
    writers = {THEIRS: partial(write_theirs, theirs), OURS: partial(write_ours, model), OURS_INT8: partial(write_ours, whole)}
    if args.compile and len(prompts) == 1: writers[OURS_COMPILED] = partial(write_ours, torch.compile(model, dynamic=False))
    greedy = {name: write(prompts, args.new_tokens, False) for name, write in writers.items()}
    assert all(len(row) == args.new_tokens for rows in greedy.values() for row in rows), "a side stopped early"
    assert all(ids == greedy[THEIRS] for name, ids in greedy.items() if name != OURS_INT8), "the two sides wrote different ids"
    return {name: partial(write, prompts, args.new_tokens, args.sample) for name, write in writers.items()}


def seconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turn(runs: dict[str, Callable], repeats: int) -> dict[str, float]:
    "The median seconds of each."
    times = {name: [] for name in runs}
    for i in range(repeats):
        for name in list(runs)[:: 1 if i % 2 == 0 else -1]: times[name].append(seconds(runs[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def compare(model: GPT, batch_size: int, buffer: Tensor, args: argparse.Namespace) -> None:
    "Print what each side writes in a second, and for one text the share of the limit."
    prompts = torch.randint(model.config.vocab_size, (batch_size, args.prompt), generator=torch.Generator().manual_seed(0))
    repeats = args.repeats if batch_size == 1 else -(-args.repeats // 2)
    buffer.sum()
    times = in_turn({"read": buffer.sum} | contestants(model, prompts, args), repeats)
    bandwidth, read = buffer.nbytes / times.pop("read"), 4 * matmul_weights(model.config)
    limit = bandwidth / read
    print(f"\n{batch_size} text{'s' if batch_size > 1 else ''}, prompt {args.prompt}, {args.new_tokens} new tokens, {'drawn at temperature 1' if args.sample else 'greedy'}; medians of {repeats} runs, in turn")
    for name, taken in times.items():
        speed = batch_size * args.new_tokens / taken
        share = f"{speed / limit:8.0%} of the limit" if batch_size == 1 and "float32" in name else ""
        print(f"  {name:32}{speed:10,.0f} tokens/s{times[THEIRS] / taken:8.2f} times transformers{share}")
    if batch_size == 1: print(f"  the limit: {bandwidth / 1e9:.1f} GB/s read, {read / 1e6:.1f} MB of float32 weights a token: {limit:,.0f} tokens/s")


def _ours(weight: Tensor) -> nn.Linear:
    linear = Linear(*weight.shape[::-1], bias=False)
    linear.weight = nn.Parameter(weight)
    return linear


def _dynamic(weight: Tensor) -> Callable:
    zeros, scale = torch.zeros(len(weight), dtype=torch.int), Int8Linear(_ours(weight)).scale
    with warnings.catch_warnings(action="ignore"):              # PyTorch calls these tensors deprecated
        packed = torch.ops.quantized.linear_prepack(torch.quantize_per_channel(weight, scale, zeros, 0, torch.qint8), None)
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed)


def _weight_only(weight: Tensor) -> Callable:
    whole = Int8Linear(_ours(weight))
    scale = whole.scale.bfloat16()
    return lambda x: torch.ops.aten._weight_int8pack_mm(x.bfloat16(), whole.weight, scale).float()


# name: from a weight (out, in) to what multiplies rows (B, in) with it
PRODUCTS = {
    "float32: F.linear": lambda weight: lambda x: F.linear(x, weight),
    "float32: llm_course's Linear": _ours,
    "int8: llm_course's Int8Linear, by torch._int_mm": lambda weight: Int8Linear(_ours(weight)),
    "int8: quantized.linear_dynamic (deprecated)": _dynamic,
    "int8 weights, bfloat16 rows: aten._weight_int8pack_mm": _weight_only,
}


def compare_products(model: GPT, batch_sizes: list[int], repeats: int) -> None:
    "Print how long all products of a step take, without the rest of the step, in each way that PyTorch offers."
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Linear)]
    products = {name: [(make(weight), weight.shape[1]) for weight in weights] for name, make in PRODUCTS.items()}
    print(f"\nmilliseconds for the products of a step alone; medians of {3 * repeats}, in turn")
    print(f"  {'':56}" + "".join(f"{B:6} row{'s' if B > 1 else ' '}" for B in batch_sizes))
    columns = []
    for B in batch_sizes:
        rows = {width: torch.randn(B, width) for width in {weight.shape[1] for weight in weights}}
        runs = {name: lambda pairs=pairs: [product(rows[width]) for product, width in pairs] for name, pairs in products.items()}
        for warm_up in runs.values(): warm_up()
        columns.append(in_turn(runs, 3 * repeats))
    for name in products: print(f"  {name:56}" + "".join(f"{1e3 * column[name]:11.2f}" for column in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 32], help="how many at once")
    parser.add_argument("--repeats", type=int, default=5, help="runs for one text; half as many for several texts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--buffer-mb", type=int, default=512, help="what is summed to measure how fast memory is read")
    parser.add_argument("--sample", action="store_true", help="draw at temperature 1, without filters, on both sides")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    args.compile = has_compiler() and not args.no_compile
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = GPTConfig.llama(vocab_size=args.vocab_size, max_seq_len=args.prompt + args.new_tokens, n_layers=args.layers, n_heads=args.heads, d_model=args.width)
    torch.manual_seed(0)
    model = GPT(config).eval()
    print(f"python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, llm_course {llm_course.__version__}; {platform.machine()} CPU, {args.threads} threads of {os.cpu_count()} cores")
    print(f"{parameter_count(model):,} parameters, {args.layers} layers, {args.heads} heads, width {args.width}, vocabulary {args.vocab_size:,}")
    if args.compile: print("compiled: one more run of ours for one text; transformers is not compiled")
    else: print("not compiled: " + ("as asked" if args.no_compile else "there is no C++ compiler"))
    buffer = torch.ones(args.buffer_mb * 2**18)                     # 2**18 float32 are a MiB; written, so that it has memory of its own
    with torch.inference_mode():
        for batch_size in args.texts: compare(model, batch_size, buffer, args)
        compare_products(model, args.texts, args.repeats)


if __name__ == "__main__": main()
