"""The losses of 20 steps of three small trainings, kept as text: a change of numbers is a decision, and
never an accident. `python tests/test_traces.py` writes them anew."""

from pathlib import Path

import pytest
import torch

from llm_course import GPT, Batches, GPTConfig, Tales, TrainConfig, load_model, train
from llm_course.packing import tokenize_documents

FOLDER = Path(__file__).parent / "traces"
SHAPE = dict(max_seq_len=64, n_layers=2, n_heads=4, d_model=32)
STEPS = dict(max_steps=20, warmup_steps=5, batch_size=8, seq_len=64, device="cpu")
CASES = {
    "course": (GPTConfig(**SHAPE), TrainConfig(**STEPS)),
    "gpt2": (
        GPTConfig.gpt2(vocab_size=1024, **SHAPE),
        TrainConfig(optimizer="adamw", weight_decay=0.1, schedule="cosine", **STEPS),
    ),
    "llama": (
        GPTConfig.llama(vocab_size=1024, n_kv_heads=2, **SHAPE),
        TrainConfig(lr=1e-3, muon_lr=0.01, schedule="wsd", grad_accum_steps=2, **STEPS),
    ),
}


def losses(name):
    "The loss before each step, in nats a token."
    shape, config = CASES[name]
    _, tokenizer = load_model()
    documents = tokenize_documents(Tales().generate(60, seed=5), tokenizer)
    torch.manual_seed(7)
    model = GPT(shape).double()  # so that another processor gives the same numbers
    batches = Batches(documents, config.batch_size, config.seq_len, seed=3)
    return [step.loss for step in train(model, batches, config)]


@pytest.mark.parametrize("name", CASES)
def test_the_losses_are_those_that_were_kept(name):
    kept = [float(line) for line in (FOLDER / f"{name}.txt").read_text().split()]
    found = losses(name)
    assert len(found) == len(kept) == 20 and found[-1] < found[0] - 0.3
    worst = max(abs(a - b) for a, b in zip(found, kept))
    assert worst < 1e-5, f"{worst:.1e} nats: if you meant it, python tests/test_traces.py"


if __name__ == "__main__":
    for case in CASES:
        lines = [f"{loss:.7f}\n" for loss in losses(case)]
        (FOLDER / f"{case}.txt").write_text("".join(lines))
