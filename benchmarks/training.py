"""Train the classic small shape with this course's model and with plain PyTorch layers, in one run on one machine, and print a table.

    python benchmarks/training.py                   # eager and compiled
    python benchmarks/training.py --no-compile      # where there is no C++ compiler
    python benchmarks/training.py --repeats 9 --steps 40

Classic: 4 layers, 4 heads, width 128, context 64, batch 12, vocabulary 65, GELU, LayerNorm, learned positions, dropout 0. A step is
zero, forward, loss, backward, clip, and the same fused AdamW. Every figure is the median of several runs, taken in turn (ours,
theirs, ours, theirs, …), because a shared machine changes its speed. The other side is given what it can use: `nn.TransformerEncoderLayer` (norm
first) with the causal flag, so that it takes PyTorch's fused attention, a tied head as ours, and the same parameters.
"""
import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_course.dataloader import Batch
from llm_course.gpt import GPT, GPTConfig, flops_per_token, parameter_count
from llm_course.training import TrainConfig, has_compiler, matmul_flops, train

CLASSIC = GPTConfig(vocab_size=65, max_seq_len=64, n_layers=4, n_heads=4, d_model=128, positions="learned", norm="layernorm", mlp="gelu",
                    qk_norm=False, bias=True)
BATCH_SIZE = 12


class PlainGPT(nn.Module):
    "The same model from the layers that PyTorch ships."

    def __init__(self, c: GPTConfig):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(c.vocab_size, c.d_model), nn.Embedding(c.max_seq_len, c.d_model)
        layer = nn.TransformerEncoderLayer(c.d_model, c.n_heads, 4 * c.d_model, c.dropout, "gelu", c.norm_eps, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, c.n_layers, nn.LayerNorm(c.d_model, c.norm_eps), enable_nested_tensor=False)
        self.head = nn.Linear(c.d_model, c.vocab_size, bias=False)
        self.head.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(c.max_seq_len), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        T = ids.shape[1]
        x = self.embedding(ids) + self.positions(torch.arange(T, device=ids.device))
        return self.head(self.blocks(x, self.mask[:T, :T], is_causal=True))


def plain_steps(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch.ids).flatten(0, 1), batch.targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        loss.item()                                # as our loop does, which reports each step's loss


def contestants(compiled: bool, steps: int) -> dict[str, Callable[[], None]]:
    "For each side a function that makes `steps` optimizer steps, warmed up: compiled and with its optimizer's state in place."
    torch.manual_seed(0)
    ids = torch.randint(CLASSIC.vocab_size, (BATCH_SIZE, CLASSIC.max_seq_len + 1))
    batch = Batch(ids[:, :-1], ids[:, 1:])
    ours, plain = GPT(CLASSIC), PlainGPT(CLASSIC)
    config = TrainConfig(max_steps=10**9, warmup_steps=0, optimizer="adamw", adamw_lr=1e-3, compile=compiled)
    loop = train(ours, repeat(batch), config)      # one run, taken up again and again: nothing is compiled twice
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    called = torch.compile(plain) if compiled else plain
    assert parameter_count(ours) == parameter_count(plain), "the two sides are not of one shape"
    state = "compiled" if compiled else "eager"
    runs = {f"llm_course, {state}": lambda: [next(loop) for _ in range(steps)],
            f"plain PyTorch layers, {state}": lambda: plain_steps(called, optimizer, batch, steps)}
    for run in runs.values(): run()
    return runs


def measure(runs: dict[str, Callable[[], None]], repeats: int, steps: int) -> dict[str, float]:
    "Tokens a second of each contestant, the median of `repeats` runs taken in turn, the first one first and last by turns."
    speeds = {name: [] for name in runs}
    for i in range(repeats):
        for name in list(runs)[:: 1 if i % 2 == 0 else -1]:
            start = time.perf_counter()
            runs[name]()
            speeds[name].append(steps * BATCH_SIZE * CLASSIC.max_seq_len / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in speeds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps in each run")
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    compiler = has_compiler() and not arguments.no_compile
    print(f"Python {platform.python_version()}, PyTorch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores")
    print(f"{parameter_count(GPT(CLASSIC)):,} parameters, batch {BATCH_SIZE} x {CLASSIC.max_seq_len} tokens, float32; medians of {arguments.repeats} runs of {arguments.steps} steps, in turn")
    if not compiler: print("not compiled: " + ("as asked" if arguments.no_compile else "there is no C++ compiler"))
    runs = {}
    for compiled in (False, True)[: 1 + compiler]: runs |= contestants(compiled, arguments.steps)
    before = matmul_flops(repeats=20)
    speeds = measure(runs, arguments.repeats, arguments.steps)
    peak, flops = max(before, matmul_flops(repeats=20)), flops_per_token(CLASSIC, CLASSIC.max_seq_len)
    print(f"measured peak of a matrix product: {peak / 1e9:,.0f} GFLOP/s (1024 x 1024, float32)\n")
    for name, speed in speeds.items(): print(f"  {name:32}{speed:10,.0f} tokens/s{speed * flops / peak:8.1%} of the peak")
    print()
    base = speeds["plain PyTorch layers, eager"]
    for state in ("eager", "compiled")[: 1 + compiler]:
        ours, plain = speeds[f"llm_course, {state}"], speeds[f"plain PyTorch layers, {state}"]
        print(f"llm_course {state}: {ours / plain:.2f} times plain layers {state}" + (f", {ours / base:.2f} times plain layers eager" if state == "compiled" else ""))


if __name__ == "__main__":
    main()
