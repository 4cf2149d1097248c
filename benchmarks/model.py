"""Forward and backward of `GPT`, beside transformers' GPT2LMHeadModel and LlamaForCausalLM.

    python benchmarks/model.py                         # the shapes that a laptop can take, float32
    python benchmarks/model.py --shapes gpt2-124M --dtype bfloat16 --device cuda --compile

Both sides are of one shape and get the same ids, the same loss on their logits, the same dtype, the
same attention kernel, and both are compiled or neither. Ours is what a training run uses, after
`optimize_for_training`; with --plain as the lessons wrote it. Steps are taken in turn, and the
figures are medians. Memory is measured in a process for each side. The share of matrix products and
attention, by torch.profiler, says how much of a step is work that nobody can leave out.
"""

import argparse
import platform
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
import transformers
from in_turn import measure_in_turn, median_ratio
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import llm_course
from llm_course.cost import parameter_count
from llm_course.gpt import GPT
from llm_course.model_config import GPTConfig
from llm_course.throughput import optimize_for_training

COURSE = dict(vocab_size=1024, max_seq_len=256, n_layers=4, n_heads=4, d_model=128)
MIDDLE = dict(vocab_size=8192, max_seq_len=512, n_layers=6, n_heads=6, d_model=384)
LARGE = dict(vocab_size=32000, max_seq_len=1024, n_layers=12, n_heads=12, d_model=768)

# name: (family, batch size, tokens a row, changes to the preset)
SHAPES = {
    "gpt2-course": ("gpt2", 8, 256, COURSE),
    "llama-course": ("llama", 8, 256, COURSE | dict(n_kv_heads=2, d_ff=384)),
    "gpt2-384": ("gpt2", 2, 512, MIDDLE),
    "llama-384": ("llama", 2, 512, MIDDLE | dict(n_kv_heads=2, d_ff=1024)),
    "gpt2-124M": ("gpt2", 1, 512, {}),
    "llama-124M": ("llama", 1, 512, LARGE | dict(n_kv_heads=4, d_ff=2048)),
}
DEFAULT_SHAPES = [name for name in SHAPES if not name.endswith("124M")]
SIDES = ("ours", "theirs")
PRODUCTS = "mm addmm bmm baddbmm gemm flash fmha attention cutlass".split()


def make_theirs(family: str, c: GPTConfig) -> nn.Module:
    "The transformers model of our config's shape."
    common = dict(
        vocab_size=c.vocab_size,
        use_cache=False,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
    )
    if family == "gpt2":
        config = GPT2Config(
            n_positions=c.max_seq_len,
            n_layer=c.n_layers,
            n_head=c.n_heads,
            n_embd=c.d_model,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **common,
        )
        return GPT2LMHeadModel(config)
    config = LlamaConfig(
        max_position_embeddings=c.max_seq_len,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads or c.n_heads,
        hidden_size=c.d_model,
        intermediate_size=c.d_ff,
        rms_norm_eps=c.norm_eps,
        tie_word_embeddings=c.tie_embeddings,
        **common,
    )
    return LlamaForCausalLM(config)


def make_model(shape: str, side: str, args: argparse.Namespace) -> nn.Module:
    "One side's model, ready to train."
    family, _, _, changes = SHAPES[shape]
    config = getattr(GPTConfig, family)(**changes)
    torch.manual_seed(0)
    model = GPT(config) if side == "ours" else make_theirs(family, config)
    model = model.to(args.device, getattr(torch, args.dtype)).train()
    if side == "ours" and not args.plain:
        optimize_for_training(model)
    return torch.compile(model) if args.compile else model


def make_ids(shape: str, args: argparse.Namespace) -> Tensor:
    "The ids (B, T) that both sides read."
    family, B, T, changes = SHAPES[shape]
    vocab_size = getattr(GPTConfig, family)(**changes).vocab_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (B, T), generator=generator).to(args.device)


def step(model: nn.Module, ids: Tensor) -> None:
    "Forward, the mean loss, backward; the gradients are dropped afterwards."
    logits = model(ids)
    if not isinstance(logits, Tensor):
        logits = logits.logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    model.zero_grad(set_to_none=True)
    if ids.is_cuda:
        torch.cuda.synchronize()


def shared_work(model: nn.Module, ids: Tensor) -> tuple[int, float]:
    "Operations of a step, and the share of its time that goes into products and attention."
    with FlopCounterMode(display=False) as counter:
        step(model, ids)
    device = ProfilerActivity.CUDA if ids.is_cuda else ProfilerActivity.CPU
    with profile(activities=[device]) as run:
        step(model, ids)
    heavy = 0.0
    total = 0.0
    for event in run.key_averages():
        time = event.self_device_time_total if ids.is_cuda else event.self_cpu_time_total
        total += time
        is_product = any(name in event.key.lower() for name in PRODUCTS)
        if is_product and "autograd" not in event.key:
            heavy += time
    return counter.get_total_flops(), heavy / total


def saved_bytes(model: nn.Module, ids: Tensor) -> int:
    "What forward keeps for backward: each storage once, parameters left out."
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):  # the storage is held, so that no address is used twice
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step(model, ids)
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)


def peak_bytes(reset: bool = False) -> int:
    """The most memory that this process has held; on Linux since the last reset (a child begins
    with its parent's ru_maxrss)."""
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024


def measure_memory(shape: str, side: str, args: argparse.Namespace) -> int:
    "Peak bytes of three steps, in this process, beyond what it held before the model was made."
    first = torch.ones(512, 512, requires_grad=True)
    first.matmul(torch.ones(512, 512)).sum().backward()  # the libraries' own first use
    before = peak_bytes(reset=True)
    model = make_model(shape, side, args)
    ids = make_ids(shape, args)
    for _ in range(3):
        step(model, ids)
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_bytes() - before


def in_own_process(shape: str, side: str, args: argparse.Namespace) -> float:
    "`measure_memory` in a process that has done nothing else."
    command = [sys.executable, __file__, "--memory", side, "--shapes", shape]
    command += ["--device", args.device, "--dtype", args.dtype, "--threads", str(args.threads)]
    if args.plain:
        command.append("--plain")
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(result.stdout.split()[-1])


def report(name: str, ours: float, theirs: float, unit: str, note: str) -> None:
    "One line of the table."
    print(f"  {name:10} ours {ours:12,.1f}  theirs {theirs:12,.1f} {unit:9} {note}")


def compare(shape: str, args: argparse.Namespace) -> None:
    "Print one shape's figures, ours beside theirs."
    models = {side: make_model(shape, side, args) for side in SIDES}
    ids = make_ids(shape, args)
    n_parameters = parameter_count(models["ours"])
    assert n_parameters == parameter_count(models["theirs"]), "the sides are not of one shape"
    steps = {side: lambda model=model: step(model, ids) for side, model in models.items()}
    for run in steps.values():
        run()  # compile, and warm up
    times = measure_in_turn(steps, args.repeats, warm_up=True)
    ours, theirs = (median(times[side]) for side in SIDES)
    ratio = median_ratio(times["ours"], times["theirs"])

    kernel = models["theirs"].config._attn_implementation
    print(f"\n{shape}: {n_parameters:,} parameters, {tuple(ids.shape)} ids, {args.dtype}")
    print(f"  attention  scaled_dot_product_attention, causal, no mask; theirs: {kernel}")
    speeds = [ids.numel() / seconds for seconds in (ours, theirs)]
    report("speed", *speeds, "tokens/s", f"{ratio:.2f} times, medians of {args.repeats}")
    if args.compile:
        return
    peaks = [in_own_process(shape, side, args) / 2**20 for side in SIDES]
    report("peak", *peaks, "MiB", f"{peaks[0] / peaks[1]:.2f} times, a process each")
    saved = [saved_bytes(model, ids) / 2**20 for model in models.values()]
    note = f"{saved[0] / saved[1]:.2f} times, kept by forward for backward"
    report("for grads", *saved, "MiB", note)
    flops, share = shared_work(models["ours"], ids)
    their_flops, their_share = shared_work(models["theirs"], ids)
    note = f"of the time in products and attention ({flops:.3g} and {their_flops:.3g} operations)"
    report("products", 100 * share, 100 * their_share, "%", note)
    print(f"             with all else of ours free it would be {theirs / (share * ours):.2f} times")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=DEFAULT_SHAPES)
    parser.add_argument("--device", default=default_device)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7, help="steps a side, at least 5")
    parser.add_argument("--compile", action="store_true", help="torch.compile for both sides")
    parser.add_argument("--plain", action="store_true", help="ours without optimize_for_training")
    parser.add_argument("--memory", choices=SIDES, help=argparse.SUPPRESS)  # for in_own_process
    args = parser.parse_args()
    if args.repeats < 5:
        parser.error("a median of fewer than 5 steps says little; give --repeats 5 or more")
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    if args.memory:
        print(measure_memory(args.shapes[0], args.memory, args))
        return
    device = f"{platform.machine()} CPU, {args.threads} threads"
    if args.device == "cuda":
        device = torch.cuda.get_device_name()
    versions = f"python {platform.python_version()}, torch {torch.__version__}"
    versions += f", transformers {transformers.__version__}, llm_course {llm_course.__version__}"
    print(f"{versions}; {device}")
    compiled = "both compiled" if args.compile else "neither compiled"
    print(f"{compiled}; ours {'plain' if args.plain else 'after optimize_for_training'}")
    for shape in args.shapes:
        compare(shape, args)


if __name__ == "__main__":
    main()
