"""Train the classic small shape with this course's model and with plain PyTorch layers, in one run
on one machine, and print a table.

    python benchmarks/training.py                   # eager and compiled
    python benchmarks/training.py --no-compile      # where there is no C++ compiler
    python benchmarks/training.py --repeats 9 --steps 40

Classic: 4 layers, 4 heads, width 128, context 64, batch 12, vocabulary 65, GELU, LayerNorm, learned
positions, dropout 0. A step is zero, forward, loss, backward, clip, and the same fused AdamW. The
sides run in turn, because a shared machine changes its speed, and every figure is the median of
several runs. The other side is given what it can use: `nn.TransformerEncoderLayer` (norm first) with
the causal flag, so that it takes PyTorch's fused attention, a tied head as ours, and the same
parameters.
"""

import argparse
import os
import platform
from collections.abc import Callable
from itertools import islice, repeat
from statistics import median

import torch
import torch.nn.functional as F
from in_turn import measure_in_turn, median_ratio
from torch import Tensor, nn

from llm_course.cost import flops_per_token, matmul_flops, parameter_count
from llm_course.gpt import GPT
from llm_course.model_config import GPTConfig
from llm_course.packing import Batch
from llm_course.settings import TrainConfig
from llm_course.throughput import has_compiler, optimize_for_training
from llm_course.training import train

CLASSIC = GPTConfig(
    vocab_size=65,
    max_seq_len=64,
    n_layers=4,
    n_heads=4,
    d_model=128,
    position_encoding="learned",
    norm="layernorm",
    mlp="gelu",
    qk_norm=False,
    bias=True,
)
BATCH_SIZE = 12
OURS = "llm_course"
PLAIN = "plain PyTorch layers"


class PlainGPT(nn.Module):
    "The same model from the layers that PyTorch ships."

    def __init__(self, config: GPTConfig):
        super().__init__()
        C = config.d_model
        self.embedding = nn.Embedding(config.vocab_size, C)
        self.positions = nn.Embedding(config.max_seq_len, C)
        layer = nn.TransformerEncoderLayer(
            C,
            config.n_heads,
            4 * C,
            config.dropout,
            "gelu",
            config.norm_eps,
            batch_first=True,
            norm_first=True,
        )
        last_norm = nn.LayerNorm(C, config.norm_eps)
        self.blocks = nn.TransformerEncoder(
            layer, config.n_layers, last_norm, enable_nested_tensor=False
        )
        self.head = nn.Linear(C, config.vocab_size, bias=False)
        self.head.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=0.02)
        mask = nn.Transformer.generate_square_subsequent_mask(config.max_seq_len)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        T = ids.shape[1]
        x = self.embedding(ids) + self.positions(torch.arange(T, device=ids.device))
        return self.head(self.blocks(x, self.mask[:T, :T], is_causal=True))


def our_steps(batch: Batch, compiled: bool, steps: int) -> Callable[[], object]:
    "A function that makes `steps` steps of one run, which is taken up again at every call."
    model = GPT(CLASSIC)
    optimize_for_training(model)
    config = TrainConfig(
        max_steps=10**9, warmup_steps=0, optimizer="adamw", lr=1e-3, compile=compiled
    )
    loop = train(model, repeat(batch), config)
    return lambda: list(islice(loop, steps))


def plain_steps(batch: Batch, compiled: bool, steps: int) -> Callable[[], object]:
    "The same with PyTorch's layers and a loop written out."
    model = PlainGPT(CLASSIC)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    called = torch.compile(model) if compiled else model

    def run() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(called(batch.ids).flatten(0, 1), batch.targets.flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
            optimizer.step()
            loss.item()  # as our loop does, which reports each step's loss

    return run


def contestants(states: list[str], steps: int) -> dict[str, Callable[[], object]]:
    "For each side and state, eager or compiled, what makes `steps` optimizer steps."
    torch.manual_seed(0)
    ids = torch.randint(CLASSIC.vocab_size, (BATCH_SIZE, CLASSIC.max_seq_len + 1))
    batch = Batch(ids[:, :-1], ids[:, 1:])
    runs = {}
    for state in states:
        runs[f"{OURS}, {state}"] = our_steps(batch, state == "compiled", steps)
        runs[f"{PLAIN}, {state}"] = plain_steps(batch, state == "compiled", steps)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps in each run")
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    repeats = arguments.repeats
    steps = arguments.steps
    size = parameter_count(GPT(CLASSIC))
    assert size == parameter_count(PlainGPT(CLASSIC)), "the two sides are not of one shape"
    machine = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, {platform.machine()}"
    print(f"Python {platform.python_version()}, PyTorch {torch.__version__}, {machine}")
    tokens = BATCH_SIZE * CLASSIC.max_seq_len
    print(f"{size:,} parameters, batch {BATCH_SIZE} x {CLASSIC.max_seq_len} tokens, float32")
    print(f"medians of {repeats} runs of {steps} steps, in turn")

    states = ["eager", "compiled"]
    if arguments.no_compile:
        states.remove("compiled")
        print("not compiled: as asked")
    elif not has_compiler():
        states.remove("compiled")
        print("not compiled: there is no C++ compiler")

    before = matmul_flops(repeats=20)
    seconds = measure_in_turn(contestants(states, steps), repeats, warm_up=True)
    peak = max(before, matmul_flops(repeats=20))
    flops = flops_per_token(CLASSIC, CLASSIC.max_seq_len)
    print(f"measured peak of a matrix product: {peak / 1e9:,.0f} GFLOP/s (1024 x 1024, float32)\n")
    for name, values in seconds.items():
        speed = tokens * steps / median(values)
        print(f"  {name:32}{speed:10,.0f} tokens/s{speed * flops / peak:8.1%} of the peak")
    print()
    for state in states:
        ours = seconds[f"{OURS}, {state}"]
        ratio = median_ratio(ours, seconds[f"{PLAIN}, {state}"])
        print(f"{OURS} {state}: {ratio:.2f} times plain layers {state}")
    if "compiled" in states:
        ratio = median_ratio(seconds[f"{OURS}, compiled"], seconds[f"{PLAIN}, eager"])
        print(f"{OURS} compiled: {ratio:.2f} times plain layers eager")


if __name__ == "__main__":
    main()
