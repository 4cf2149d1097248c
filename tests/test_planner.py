"""What a rank holds, weighed and counted; a step played through; what a plan says."""

from collections import defaultdict
from functools import partial
from itertools import pairwise, product

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from llm_course.capacity import GPUS, TrainingJob, largest_rows, peak_bytes, state_bytes
from llm_course.cost import activation_bytes, flops_per_token, shapes_of
from llm_course.footprint import LiveBytes, SavedActivations, held_bytes
from llm_course.gpt import GPT
from llm_course.learning import cross_entropy
from llm_course.model_config import GPTConfig
from llm_course.optim import make_optimizer
from llm_course.plan import llm_plan
from llm_course.planner import Assumptions, bandwidth, bytes_per_step, plan, simulate_job
from llm_course.ranks import Ranks
from llm_course.settings import TrainConfig
from llm_course.throughput import optimize_for_training
from llm_course.timeline import Unit, simulate_step, step_seconds

UNEVEN = GPTConfig(vocab_size=257, d_model=66, n_heads=3, n_layers=2, mlp="swiglu", bias=True)
UNTIED = GPTConfig(vocab_size=130, d_model=40, n_layers=3, n_heads=2, tie_embeddings=False)
GPT2_PARTS = dict(norm="layernorm", mlp="gelu_tanh", qk_norm=False, position_encoding="learned")
SHAPES = {
    "ours": GPTConfig(n_layers=3),
    "gpt2": GPTConfig(n_layers=3, bias=True, **GPT2_PARTS),
    "llama": GPTConfig(n_layers=3, mlp="swiglu", qk_norm=False, n_kv_heads=2, tie_embeddings=False),
    "qwen": GPTConfig(n_layers=3, mlp="swiglu", n_kv_heads=2, d_head=64),
    "windows": GPTConfig(n_layers=3, sliding_window=16, mlp="geglu", logit_softcap=30.0),
}


def loss_of(model, rows=2, T=48, dtype="float32"):
    ids = torch.zeros(rows, T, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        logits = model(ids)
    return cross_entropy(logits, ids)


def on_this_rank(config, kind, name, param_dtype="float32", rows=1):
    "What one step leaves on this rank, and the activations at their peak."
    import torch.distributed as dist

    from llm_course.processes import ParallelConfig, wrap
    from llm_course.sharded import ShardedOptimizer
    from llm_course.throughput import World

    model = GPT(config)
    optimize_for_training(model)
    parallel = ParallelConfig("ddp" if kind == "zero1" else kind, param_dtype)
    runner = wrap(model, parallel)
    optimizer = make_optimizer(model, TrainConfig(optimizer=name))
    if kind == "zero1":
        optimizer = ShardedOptimizer(optimizer, World(dist.get_rank(), dist.get_world_size()))
    with SavedActivations() as saved:
        loss_of(runner, rows).backward()
    optimizer.step()
    return held_bytes(model, optimizer, saved.peak)


def weigh_all(n_ranks, configs):
    with Ranks(n_ranks, timeout=120) as ranks:
        for config, kind, name in product(configs, ("ddp", "zero1", "fsdp"), ("adamw", "muon")):
            for rank, weighed in enumerate(ranks.run(on_this_rank, config, kind, name)):
                counted = state_bytes(config, name, kind, n_ranks, rank)
                assert weighed[:3] == counted[:3], (kind, name, rank)
        (weighed, *_) = ranks.run(on_this_rank, UNEVEN, "fsdp", "muon", "bfloat16")
        counted = activation_bytes(UNEVEN, 1, 48, param_dtype="bfloat16", lean=True)
        assert weighed[:3] == state_bytes(UNEVEN, "muon", "fsdp", n_ranks)[:3]
        assert abs(counted / weighed.activations - 1) < 0.1


def test_two_ranks_hold_what_is_counted():
    weigh_all(2, [UNEVEN])


@pytest.mark.slow
def test_four_ranks_hold_what_is_counted():
    weigh_all(4, [UNEVEN, UNTIED])


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 8, 300])
def test_no_number_is_lost_or_doubled(n_ranks):
    "Also where there are more ranks than rows: the last ones hold nothing of a tensor."
    for name in ("adamw", "muon"):
        alone = state_bytes(UNEVEN, name)
        parts = [state_bytes(UNEVEN, name, "fsdp", n_ranks, rank) for rank in range(n_ranks)]
        assert sum(part.weights for part in parts) == alone.weights
        assert max(part.weights for part in parts) == parts[0].weights
        owned = [state_bytes(UNEVEN, name, "zero1", n_ranks, rank) for rank in range(n_ranks)]
        assert sum(part.optimizer for part in owned) == alone.optimizer


@pytest.mark.parametrize("name", SHAPES)
def test_activations_are_counted(name):
    "Within 10 %, as the planner promises; in fact within 2 %."
    config = SHAPES[name]
    for dtype, again in product(("float32", "bfloat16"), (False, True)):
        torch.manual_seed(0)
        model = GPT(config)
        optimize_for_training(model)
        if again:  # the reentrant form computes the rest again where the hooks can see it
            for block in model.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=True)
        with SavedActivations() as saved:
            loss_of(model, dtype=dtype).backward()
        counted = activation_bytes(config, 2, 48, dtype, checkpoint_every=int(again), lean=True)
        assert saved.now == 0
        assert abs(counted / saved.peak - 1) < (0.1 if again else 0.02), (dtype, again)


def test_live_bytes():
    held = torch.zeros(1000)
    with LiveBytes([held]) as live:
        a = held + 1
        a.mul_(2)  # in place: no new storage
        b = a[:10]  # a view: none either
        assert live.now == 8000
        del a
        assert live.now == 8000  # the view keeps it
        del b
        assert live.now == 4000
    assert live.peak == 8000


def test_nothing_happens_twice_at_once():
    "In each lane one thing after the other; a unit never computes before its weights are there."
    units = [Unit(1, 2, 0.7, 0.7, 1.1)] * 5
    spans = simulate_step(units, n_batches=3, after_step=0.5)
    lanes = defaultdict(list)
    for span in spans:
        lanes[span.lane].append(span)
    for lane in lanes.values():
        assert all(before.end <= after.start + 1e-12 for before, after in pairwise(lane))
    gathers = [span.end for span in spans if span.what == "gather"]
    computed = [span.start for span in spans if span.lane == "compute"]
    assert all(ready <= start + 1e-12 for ready, start in zip(gathers, computed))
    assert sum(span.what == "reduce" for span in spans) == 5  # once a step
    seconds, exposed = step_seconds(spans)
    assert exposed == pytest.approx(seconds - 3 * 5 * 3) and exposed > 0


def test_bytes_of_a_step():
    n_bytes = 4 * sum(p.numel() for p in shapes_of(UNTIED).parameters())
    blocks = 4 * sum(p.numel() for p in shapes_of(UNTIED).blocks.parameters())
    for n in (2, 4, 8):
        jobs = {kind: TrainingJob(UNTIED, 1, n, 8, 1, n, kind, optimizer="adamw") for kind in ("ddp", "fsdp")}
        share = (n - 1) / n
        assert bytes_per_step(jobs["ddp"]) == pytest.approx(2 * share * n_bytes)
        assert bytes_per_step(jobs["fsdp"]) == pytest.approx(share * (2 * n_bytes + blocks))
    assert bytes_per_step(TrainingJob(UNTIED, 1, 1, 8)) == 0


def test_plan():
    job = TrainingJob(GPTConfig.gpt2(), 1e9, 64, 1024, dtype="bfloat16", optimizer="adamw")
    one = plan(job, GPUS["A100"], Assumptions(utilization=0.5, price=2.0))
    work = 1e9 * flops_per_token(job.model, 1024) / (0.5 * 312e12) / 3600
    assert one.hours == pytest.approx(work) and one.cost == 2 * one.hours and one.exposed == 0
    assert one.tokens_per_second == pytest.approx(1e9 / one.hours / 3600)
    eight = TrainingJob(job.model, 1e9, 64, 1024, 1, 8, "ddp", "bfloat16", optimizer="adamw")
    assert 1 <= 8 * plan(eight, GPUS["A100"]).hours / plan(job, GPUS["A100"]).hours < 1.1
    assert bandwidth(8, GPUS["A100"], Assumptions()) > bandwidth(16, GPUS["A100"], Assumptions())
    spans = simulate_job(eight, GPUS["A100"], Assumptions())
    assert sum(span.what == "reduce" for span in spans) == 12 + 1


def test_largest_rows_is_the_largest():
    for kind, n, again in (("none", 1, False), ("ddp", 2, False), ("fsdp", 8, True)):
        job = TrainingJob(GPTConfig.gpt2(), 1e9, n, 1024, 1, n, kind, "bfloat16", checkpoint=again)
        rows = largest_rows(job, GPUS["A10"])
        sizes = [peak_bytes(TrainingJob(job.model, 1, (rows + i) * n, 1024, 1, n, kind, "bfloat16",
                                checkpoint=again))[2] for i in (0, 1)]
        assert sizes[0] <= GPUS["A10"].memory < sizes[1]
    assert largest_rows(TrainingJob(GPTConfig.llama("8B"), 1, 1, 1024), GPUS["A10"]) == 0


@pytest.mark.parametrize("wrong, sentence", [
    (dict(kind="tensor"), "choose one of none, ddp, zero1, fsdp."),
    (dict(n_gpus=2), "kind is none: give ddp, zero1 or fsdp."),
    (dict(n_gpus=3, kind="ddp"), "batch_size=4 rows cannot be divided over n_gpus=3"),
    (dict(n_gpus=2, kind="ddp", param_dtype="bfloat16"), "is for kind=fsdp, not ddp."),
])
def test_jobs_that_cannot_be(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainingJob(UNTIED, 1e6, 4, 8, **wrong)


def test_the_command(capsys):
    words = "train.dtype=bfloat16 train.batch_size=64 --gpu A100 --gpus 4 --price 2 --tokens 1e9"
    assert llm_plan(words.split()) == 0
    said = capsys.readouterr().out
    assert "918,912 parameters" in said and "1,000,000,000 tokens" in said
    assert "40% of 312 TFLOP/s in bfloat16" in said and said.count("yes") >= 4
    assert "parallel.kind=ddp parallel.checkpoint_activations=false" in said
    assert llm_plan(["--memory", "0.001"]) == 0
    said = capsys.readouterr().out
    assert said.count("NO") == 2 and "nothing fits" in said


@pytest.mark.parametrize("words, sentence", [
    ("--gpu T4", "--gpu T4 is not known: give one of B200, H200"),
    ("--gpus 3", "batch_size=16 rows cannot be divided over n_gpus=3"),
    ("--gpus 0", "--gpus is 0; it must be above 0"),
    ("--price nan", "--price is nan; it must be above 0"),
    ("--utilization 40", "it is a share, at most 1"),
    ("--tokens many", "--tokens"),
])
def test_what_the_command_refuses(words, sentence, capsys):
    assert llm_plan(words.split()) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("llm_plan: ") and said.count("\n") == 1
