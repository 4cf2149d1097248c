"""Write with this course's `generate` and with transformers' `generate`, from the same weights, in
one run, and print a table.

    python benchmarks/generation.py                        # 12 million weights, one text and 32
    python benchmarks/generation.py --threads 1
    python benchmarks/generation.py --no-compile --sample  # draw instead of taking the likeliest

Both sides have a cache, float32, the same prompt and number of tokens; the greedy ids are compared
and must be the same. Ours is what the commands use, after `optimize_for_decoding`. Every figure is
the median of several rounds, in which all sides run in turn; a ratio is the median over the rounds.

The limit: a token needs every matrix once, so one text cannot be written faster than the weights
can be read. How fast that is comes from the sum of a buffer many times larger than the processor's
caches, on the same threads, in turn with the runs: a sum reads each number once, in order, and does
nearly nothing else. (A matrix-vector product would do as well, but a slow one would flatter us.)
"""

import argparse
import copy
import os
import platform
import statistics
import tempfile
import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
import transformers
from in_turn import measure_in_turn, median_ratio
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import llm_course
from llm_course.cost import matmul_weights, parameter_count
from llm_course.fast import FewRowLinear, Int8Linear, optimize_for_decoding, quantize_int8
from llm_course.gpt import GPT
from llm_course.model_config import GPTConfig
from llm_course.pretrained import to_pretrained
from llm_course.sampling import generate
from llm_course.throughput import has_compiler
from llm_course.writing import generate_batch

THEIRS = "transformers, float32, eager"
OURS = "llm_course, float32, eager"
OURS_INT8 = "llm_course, int8, eager"
OURS_COMPILED = "llm_course, float32, compiled"
READ = "read"


def their_model(model: GPT) -> nn.Module:
    "The same weights as a transformers model that ends at no token."
    settings = dict(dtype=torch.float32, attn_implementation="sdpa")
    with tempfile.TemporaryDirectory() as folder:
        to_pretrained(folder, model)
        theirs = LlamaForCausalLM.from_pretrained(folder, **settings).eval()
    theirs.generation_config.eos_token_id = None
    return theirs


def write_ours(model: nn.Module, prompts: Tensor, n: int, sample: bool) -> list[list[int]]:
    settings = dict(temperature=1.0 if sample else 0.0)
    if len(prompts) == 1:
        return [list(generate(model, prompts[0], n, **settings))]
    return generate_batch(model, prompts, n, **settings)


def write_theirs(model: nn.Module, prompts: Tensor, n: int, sample: bool) -> list[list[int]]:
    drawing = dict(do_sample=False)
    if sample:
        drawing = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    out = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=n,
        use_cache=True,
        pad_token_id=0,
        **drawing,
    )
    return out[:, prompts.shape[1] :].tolist()


def contestants(
    model: GPT, prompts: Tensor, args: argparse.Namespace
) -> dict[str, Callable[[], list[list[int]]]]:
    "For each side a function that writes, warmed up; what it wrote is checked."
    fast = optimize_for_decoding(copy.deepcopy(model))
    whole = quantize_int8(copy.deepcopy(fast))
    writers = {
        THEIRS: partial(write_theirs, their_model(model)),
        OURS: partial(write_ours, fast),
        OURS_INT8: partial(write_ours, whole),
    }
    if args.compile and len(prompts) == 1:
        compiled = optimize_for_decoding(copy.deepcopy(model), compiled=True)
        writers[OURS_COMPILED] = partial(write_ours, compiled)
    greedy = {name: write(prompts, args.new_tokens, False) for name, write in writers.items()}
    for name, rows in greedy.items():
        assert all(len(row) == args.new_tokens for row in rows), f"{name} stopped early"
        is_same = rows == greedy[THEIRS]
        assert is_same or name == OURS_INT8, f"{name} wrote other ids than transformers"
    return {
        name: partial(write, prompts, args.new_tokens, args.sample)
        for name, write in writers.items()
    }


def compare(model: GPT, batch_size: int, buffer: Tensor, args: argparse.Namespace) -> None:
    "Print what each side writes in a second, and for one text the share of the limit."
    generator = torch.Generator().manual_seed(0)
    size = (batch_size, args.prompt)
    prompts = torch.randint(model.config.vocab_size, size, generator=generator)
    rounds = args.repeats if batch_size == 1 else -(-args.repeats // 2)
    buffer.sum()
    times = measure_in_turn({READ: buffer.sum} | contestants(model, prompts, args), rounds)
    bandwidth = buffer.nbytes / statistics.median(times.pop(READ))
    read = 4 * matmul_weights(model.config)
    limit = bandwidth / read
    texts = "1 text" if batch_size == 1 else f"{batch_size} texts"
    drawn = "drawn at temperature 1" if args.sample else "greedy"
    print(f"\n{texts}, prompt {args.prompt}, {args.new_tokens} new tokens, {drawn}; ", end="")
    print(f"medians of {rounds} rounds, in turn")
    for name, seconds in times.items():
        speed = batch_size * args.new_tokens / statistics.median(seconds)
        ratio = median_ratio(seconds, times[THEIRS])
        share = ""
        if batch_size == 1 and "float32" in name:
            share = f"{speed / limit:8.0%} of the limit"
        print(f"  {name:32}{speed:10,.0f} tokens/s{ratio:8.2f} times transformers{share}")
    if batch_size == 1:
        print(
            f"  the limit: {bandwidth / 1e9:.1f} GB/s read, {read / 1e6:.1f} MB of float32 weights "
            f"a token: {limit:,.0f} tokens/s"
        )


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
    linear.weight = nn.Parameter(weight)
    return linear


def _few_rows(weight: Tensor) -> Callable:
    return FewRowLinear(_linear(weight))


def _plain(weight: Tensor) -> Callable:
    return lambda x: F.linear(x, weight)


def _int8(weight: Tensor) -> Callable:
    return Int8Linear(_linear(weight))


def _dynamic(weight: Tensor) -> Callable:
    zeros = torch.zeros(len(weight), dtype=torch.int)
    scale = Int8Linear(_linear(weight)).scale
    with warnings.catch_warnings(action="ignore"):  # PyTorch calls these tensors deprecated
        rounded = torch.quantize_per_channel(weight, scale, zeros, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(rounded, None)
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed)


def _weight_only(weight: Tensor) -> Callable:
    whole = Int8Linear(_linear(weight))
    scale = whole.scale.bfloat16()
    product = torch.ops.aten._weight_int8pack_mm
    return lambda x: product(x.bfloat16(), whole.weight, scale).float()


# name: from a weight (out, in) to what multiplies rows (B, in) with it
PRODUCTS = {
    "float32: F.linear": _plain,
    "float32: llm_course's FewRowLinear": _few_rows,
    "int8: llm_course's Int8Linear, by torch._int_mm": _int8,
    "int8: quantized.linear_dynamic (deprecated)": _dynamic,
    "int8 weights, bfloat16 rows: aten._weight_int8pack_mm": _weight_only,
}


def _multiply_all(products: list[Callable], rows: list[Tensor]) -> None:
    for product, x in zip(products, rows):
        product(x)


def compare_products(model: GPT, batch_sizes: list[int], rounds: int) -> None:
    "Print how long all products of a step take, without the rest of it, in each way there is."
    layers = [part for part in model.modules() if isinstance(part, nn.Linear)]
    weights = [layer.weight.detach() for layer in layers]
    products = {name: [make(weight) for weight in weights] for name, make in PRODUCTS.items()}
    print(f"\nmilliseconds for the products of a step alone; medians of {rounds} rounds, in turn")
    heads = [f"{B:6} row{'s' if B > 1 else ' '}" for B in batch_sizes]
    print(f"  {'':56}{''.join(heads)}")
    columns = []
    for B in batch_sizes:
        by_width = {weight.shape[1]: torch.randn(B, weight.shape[1]) for weight in weights}
        rows = [by_width[weight.shape[1]] for weight in weights]
        runs = {name: partial(_multiply_all, parts, rows) for name, parts in products.items()}
        columns.append(measure_in_turn(runs, rounds, warm_up=True))
    for name in products:
        medians = [1e3 * statistics.median(column[name]) for column in columns]
        print(f"  {name:56}" + "".join(f"{value:11.2f}" for value in medians))


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 32], help="how many at once")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; for several texts half")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--buffer-mb", type=int, default=512, help="summed, to see memory's speed")
    parser.add_argument("--sample", action="store_true", help="draw at temperature 1, both sides")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    args.compile = has_compiler() and not args.no_compile
    return args


def main() -> None:
    args = parsed_arguments()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = GPTConfig.llama(
        vocab_size=args.vocab_size,
        max_seq_len=args.prompt + args.new_tokens,
        n_layers=args.layers,
        n_heads=args.heads,
        d_model=args.width,
    )
    model = GPT(config).eval()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"python {platform.python_version()}, {versions}, llm_course {llm_course.__version__}; ", end="")
    print(f"{platform.machine()} CPU, {args.threads} threads of {os.cpu_count()} cores")
    print(f"{parameter_count(model):,} parameters, {args.layers} layers, {args.heads} heads, ", end="")
    print(f"width {args.width}, vocabulary {args.vocab_size:,}")
    if args.compile:
        print("compiled: one more run of ours for one text; transformers is not compiled")
    else:
        reason = "as asked" if args.no_compile else "there is no C++ compiler"
        print(f"not compiled: {reason}")
    buffer = torch.ones(args.buffer_mb * 2**18)  # 2**18 float32 are a MiB; written, so it is real
    with torch.inference_mode():
        for batch_size in args.texts:
            compare(model, batch_size, buffer, args)
        compare_products(model, args.texts, 3 * args.repeats)


if __name__ == "__main__":
    main()
