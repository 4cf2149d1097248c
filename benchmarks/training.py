"""Train the classic small shape with this course's model and with plain PyTorch layers, in one run on one machine, and print a table.

    python benchmarks/training.py                   # eager and compiled
    python benchmarks/training.py --no-compile      # where there is no C++ compiler
    python benchmarks/training.py --repeats 9 --steps 40

Classic: 4 layers, 4 heads, width 128, context 64, batch 12, vocabulary 65, GELU, LayerNorm, learned positions, dropout 0. A step is
zero, forward, loss, backward, clip, and the same fused AdamW. Every figure is the median of several runs, taken in turn (ours,
theirs, ours, theirs, …), because a shared machine changes its speed. The other side's numbers are no lower for want of care:
`nn.TransformerEncoderLayer` (norm first) with the causal flag, so that it takes PyTorch's fused attention, and a tied head, as ours.
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
from llm_course.training import TrainConfig, make_optimizer, matmul_flops, train

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
    runs = {"llm_course": lambda: [next(loop) for _ in range(steps)], "plain PyTorch layers": lambda: plain_steps(called, optimizer, batch, steps)}
    for run in runs.values(): run()
    return runs
