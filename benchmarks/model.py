"""Forward and backward of `GPT`, beside transformers' GPT2LMHeadModel and LlamaForCausalLM of the same shape.

    python benchmarks/model.py                         # the shapes that a laptop can take, float32
    python benchmarks/model.py --shapes gpt2-124M --dtype bfloat16 --device cuda --compile

Both sides get the same ids, the same loss on their logits, the same dtype, the same attention kernel, and both are compiled or
neither. Steps alternate in order (ours first, then theirs first), and the figures are medians. Memory is measured in a process for
each side. The share of matrix products and attention, by torch.profiler, says how much of a step is work that nobody can leave out.
"""
import argparse
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import llm_course
from llm_course.gpt import GPT, GPTConfig, parameter_count

# name: (family, batch size, tokens a row, changes to the preset)
SHAPES = {
    "gpt2-course": ("gpt2", 8, 256, dict(vocab_size=1024, max_seq_len=256, n_layers=4, n_heads=4, d_model=128)),
    "llama-course": ("llama", 8, 256, dict(vocab_size=1024, max_seq_len=256, n_layers=4, n_heads=4, n_kv_heads=2, d_model=128, d_ff=384)),
    "gpt2-384": ("gpt2", 2, 512, dict(vocab_size=8192, max_seq_len=512, n_layers=6, n_heads=6, d_model=384)),
    "llama-384": ("llama", 2, 512, dict(vocab_size=8192, max_seq_len=512, n_layers=6, n_heads=6, n_kv_heads=2, d_model=384, d_ff=1024)),
    "gpt2-124M": ("gpt2", 1, 512, {}),
    "llama-124M": ("llama", 1, 512, dict(vocab_size=32000, max_seq_len=1024, n_layers=12, n_heads=12, n_kv_heads=4, d_model=768, d_ff=2048)),
}
DEFAULT_SHAPES = [name for name in SHAPES if not name.endswith("124M")]
SIDES = ("ours", "theirs")


def theirs(family: str, c: GPTConfig) -> nn.Module:
    "The transformers model of our config's shape."
    common = dict(vocab_size=c.vocab_size, use_cache=False, attn_implementation="sdpa", bos_token_id=None, eos_token_id=None)
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_positions=c.max_seq_len, n_layer=c.n_layers, n_head=c.n_heads, n_embd=c.d_model,
                                          resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **common))
    return LlamaForCausalLM(LlamaConfig(max_position_embeddings=c.max_seq_len, num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads,
                                        num_key_value_heads=c.n_kv_heads or c.n_heads, hidden_size=c.d_model, intermediate_size=c.d_ff,
                                        rms_norm_eps=c.norm_eps, tie_word_embeddings=c.tied_head, **common))


def build(shape: str, side: str, args: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    "One side's model, and the ids (B, T) that both sides read."
    family, B, T, changes = SHAPES[shape]
    config = getattr(GPTConfig, family)(**changes)
    torch.manual_seed(0)
    model = (GPT(config) if side == "ours" else theirs(family, config)).to(args.device, getattr(torch, args.dtype)).train()
    ids = torch.randint(config.vocab_size, (B, T), generator=torch.Generator().manual_seed(0)).to(args.device)
    return (torch.compile(model) if args.compile else model), ids


def step(model: nn.Module, ids: Tensor) -> None:
    "Forward, the mean loss, backward; the gradients are dropped afterwards."
    logits = model(ids)
    logits = logits if isinstance(logits, Tensor) else logits.logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    model.zero_grad(set_to_none=True)


def seconds(model: nn.Module, ids: Tensor) -> float:
    wait = torch.cuda.synchronize if ids.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    step(model, ids)
    wait()
    return time.perf_counter() - start


def shared_work(model: nn.Module, ids: Tensor) -> tuple[int, float]:
    "Operations of a step, and the share of its time that goes into matrix products and the attention kernel."
    with FlopCounterMode(display=False) as counter: step(model, ids)
    with profile(activities=[ProfilerActivity.CUDA if ids.is_cuda else ProfilerActivity.CPU]) as run: step(model, ids)
    time_of = lambda e: e.self_device_time_total if ids.is_cuda else e.self_cpu_time_total
    names = ("mm", "addmm", "bmm", "baddbmm", "gemm", "flash", "fmha", "attention", "cutlass")
    events = run.key_averages()
    heavy = sum(time_of(e) for e in events if any(name in e.key.lower() for name in names) and "autograd" not in e.key)
    return counter.get_total_flops(), heavy / sum(map(time_of, events))


def saved_bytes(model: nn.Module, ids: Tensor) -> int:
    "What forward keeps for backward: each storage once, parameters left out."
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}
    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()   # held, so that no address is used twice
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor): step(model, ids)
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)


def peak_bytes(reset: bool = False) -> int:
    "The most memory that this process has held; on Linux since the last reset (a child begins with its parent's ru_maxrss)."
    status = Path("/proc/self/status")
    if not status.exists(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if reset: Path("/proc/self/clear_refs").write_text("5")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024


def measure_memory(shape: str, side: str, args: argparse.Namespace) -> int:
    "Peak bytes of three steps, in this process, beyond what it held before the model was made."
    torch.ones(512, 512, requires_grad=True).matmul(torch.ones(512, 512)).sum().backward()  # the libraries' own first use
    before = peak_bytes(reset=True)
    model, ids = build(shape, side, args)
    for _ in range(3): step(model, ids)
    return torch.cuda.max_memory_allocated() if args.device == "cuda" else peak_bytes() - before


def in_own_process(shape: str, side: str, args: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--memory", side, "--shapes", shape, "--device", args.device, "--dtype", args.dtype, "--threads", str(args.threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def compare(shape: str, args: argparse.Namespace) -> None:
    "Print one shape's figures, ours beside theirs."
    models, ids = zip(*(build(shape, side, args) for side in SIDES))
    assert parameter_count(models[0]) == parameter_count(models[1]), "the two sides are not of one shape"
    times = [[], []]
    for model in models: seconds(model, ids[0]), seconds(model, ids[0])          # warm up, and compile
    for i in range(args.repeats):
        for side in ((0, 1), (1, 0))[i % 2]: times[side].append(seconds(models[side], ids[0]))
    speeds = [ids[0].numel() / median(t) for t in times]
    attention = f"scaled_dot_product_attention, causal, no mask; theirs: {models[1].config._attn_implementation}"
    print(f"\n{shape}: {parameter_count(models[0]):,} parameters, {tuple(ids[0].shape)} ids, {args.dtype}; attention: {attention}")
    print(f"  speed      ours {speeds[0]:12,.0f}  theirs {speeds[1]:12,.0f} tokens/s   {speeds[0] / speeds[1]:.2f} times, medians of {args.repeats}")
    memory = [in_own_process(shape, side, args) / 2**20 for side in SIDES] if not args.compile else None
    if memory: print(f"  peak       ours {memory[0]:12,.1f}  theirs {memory[1]:12,.1f} MiB        {memory[0] / memory[1]:.2f} times, a process each")
    if args.compile: return
    saved = [saved_bytes(model, ids[0]) / 2**20 for model in models]
    print(f"  for grads  ours {saved[0]:12,.1f}  theirs {saved[1]:12,.1f} MiB        {saved[0] / saved[1]:.2f} times, kept by forward for backward")
    (flops, share), (their_flops, their_share) = (shared_work(model, ids[0]) for model in models)
    seconds_ours, seconds_theirs = median(times[0]), median(times[1])
    print(f"  products   ours {share:12.0%}  theirs {their_share:12.0%} of the time in matrix products and attention ({flops:.3g} and {their_flops:.3g} operations)")
    print(f"             with all else of ours free the ratio would be {seconds_theirs / (share * seconds_ours):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=DEFAULT_SHAPES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7, help="measured steps a side, at least 5")
    parser.add_argument("--compile", action="store_true", help="torch.compile for both sides")
    parser.add_argument("--memory", choices=SIDES, help=argparse.SUPPRESS)        # one side's peak, for in_own_process
    args = parser.parse_args()
    if args.repeats < 5: parser.error("a median of fewer than 5 steps says little; give --repeats 5 or more")
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    if args.memory: print(measure_memory(args.shapes[0], args.memory, args)); return
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU, {args.threads} threads"
    print(f"python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, llm_course {llm_course.__version__}; {device}")
    print(f"compiled: ours {'yes' if args.compile else 'no'}, theirs {'yes' if args.compile else 'no'}")
    for shape in args.shapes: compare(shape, args)


if __name__ == "__main__": main()
