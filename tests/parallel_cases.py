"""What tests/test_parallel.py proves: one training, made by one process and by several.

A **case** is a generator function `case(setting)` that runs on every rank of a process group. It
trains the model of `make_model(setting)` on this rank's part of the global batches and yields, after
each optimizer step, the loss over the global batch and the weights that this rank can give, whole, by
their names in the one-process model: all of them, or those of its stage; what is cut is put together
first. `steps_of` does all of that for a model that the course's `train` can take. Add yours to CASES,
with the number of ranks it wants. Everything else is here: the one-process `reference`, written to a
file, and `compare`, which runs on every rank, reads that file and returns how far this rank's losses
and weights are from it.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from llm_course.checkpoint import bundled_model
from llm_course.clipping import clip_grad_norm
from llm_course.config import load_config
from llm_course.corpus import Tales
from llm_course.dataloader import Batches
from llm_course.distributed import GradientBuckets, all_reduce_gradients
from llm_course.formats import load_tokenizer
from llm_course.gpt import GPT
from llm_course.model_config import GPTConfig
from llm_course.model_parallel import vocab_parallel_cross_entropy
from llm_course.optim import make_optimizer
from llm_course.packing import Batch, Documents, tokenize_documents
from llm_course.pipeline import Stage, gpipe, one_f_one_b, pipeline_step
from llm_course.processes import ParallelConfig, wrap
from llm_course.settings import TrainConfig, set_learning_rate
from llm_course.sharded import ShardedOptimizer
from llm_course.tensor_parallel import TensorParallel, make_parallel_optimizer, tensor_parallel
from llm_course.throughput import summed_loss
from llm_course.training import train
from llm_course.world import World

DEMO = load_config("configs/train_small.yaml")
State = tuple[float, dict[str, Tensor]]  # loss of a step, weights after it


@dataclass(frozen=True)
class Setting:
    "One training: the demo's, with one layer, on four rows of 64 tokens, and what is changed in it."

    optimizer: str = "adamw"                              # "adamw", "muon", "sgd"
    dtype: str = "float64"                                # of weights and activations
    steps: int = 50
    rows: int = 4                                         # of a global batch, over all ranks
    model: dict[str, Any] = field(default_factory=dict)   # changes to the demo's GPTConfig
    train: dict[str, Any] = field(default_factory=dict)   # changes to its TrainConfig
    frozen: tuple[str, ...] = ()                          # beginnings of names
    uneven: bool = False                                  # the first row has 3 targets
    param_dtype: str = "float32"                          # FSDP's: weights are gathered in it


def model_config(setting: Setting) -> GPTConfig:
    return replace(DEMO.model, **{"n_layers": 1, **setting.model})


def train_config(setting: Setting, world_size: int = 1) -> TrainConfig:
    config = replace(DEMO.train, batch_size=setting.rows // world_size, seq_len=64, device="cpu")
    if setting.optimizer != "muon":
        # base.yaml's rate: the demo's is meant for the embedding and the head alone
        config = replace(config, optimizer="adamw", lr=0.003, muon_lr=None)
    return replace(config, **setting.train)


def optimizer_of(setting: Setting, model):
    if setting.optimizer == "sgd":
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    return make_optimizer(model, train_config(setting))


def make_model(setting: Setting) -> GPT:
    "The same weights on every rank."
    torch.manual_seed(0)
    model = GPT(model_config(setting)).to(getattr(torch, setting.dtype))
    for name, p in model.named_parameters():
        if name.startswith(setting.frozen or ("no parameter",)):
            p.requires_grad_(False)
    return model


@cache
def documents() -> Documents:
    return tokenize_documents(Tales().generate(600), load_tokenizer(bundled_model()))


def batches(setting: Setting, rank: int = 0, world_size: int = 1) -> Iterator:
    "This rank's rows of the global batches: the course's own packed rows of Tales."
    rows = setting.rows // world_size
    for batch in Batches(documents(), rows, 64, seed=0, rank=rank, world_size=world_size):
        if setting.uneven and rank == 0:
            batch.targets[0, 3:] = -100
        yield batch


def group() -> World:
    "The process group of this rank."
    return World(dist.get_rank(), dist.get_world_size())


def whole(model: torch.nn.Module) -> dict[str, Tensor]:
    "All weights by name, shards put together; a tied head counts once."
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    return {name: getattr(p, "full_tensor", p.clone)() for name, p in tensors.items()}


def steps_of(setting: Setting, model, runner, world: World, optimizer=None) -> Iterator[State]:
    "Train by the course's own loop; the loss of each step, and the weights of `model` after it."
    config = train_config(setting, world.world_size)
    rows = batches(setting, world.rank, world.world_size)
    optimizer = optimizer or optimizer_of(setting, runner)
    for metrics in islice(train(runner, rows, config, optimizer, world=world), setting.steps):
        yield metrics.loss, whole(model)


def alone(setting: Setting) -> Iterator[State]:
    "The reference: one process, the whole batch."
    model = make_model(setting)
    yield from steps_of(setting, model, model, World())


def in_rank_order(setting: Setting) -> Iterator[State]:
    "Another one: one process that adds up the gradients of two ranks in their order, unclipped."
    model = make_model(setting)
    optimizer = optimizer_of(setting, model)
    parts = zip(batches(setting, 0, 2), batches(setting, 1, 2))
    for step, ranks in enumerate(islice(parts, setting.steps)):
        set_learning_rate(optimizer, train_config(setting), step)
        count = sum(int((batch.targets != -100).sum()) for batch in ranks)
        losses = [summed_loss(model, batch)[0] / count for batch in ranks]
        trained = [p for p in model.parameters() if p.requires_grad]
        gradients = [torch.autograd.grad(loss, trained) for loss in losses]
        for p, first, second in zip(trained, *gradients):
            p.grad = first + second
        optimizer.step()
        yield (losses[0] + losses[1]).item(), whole(model)


def ddp(setting: Setting) -> Iterator[State]:
    model = make_model(setting)
    runner = wrap(model, ParallelConfig(kind="ddp"))
    yield from steps_of(setting, model, runner, group())


def fsdp(setting: Setting) -> Iterator[State]:
    config = ParallelConfig(kind="fsdp", param_dtype=setting.param_dtype)
    model = wrap(make_model(setting), config)
    yield from steps_of(setting, model, model, group())


def zero1(setting: Setting) -> Iterator[State]:
    model = make_model(setting)
    sharded = ShardedOptimizer(optimizer_of(setting, model), group())
    yield from steps_of(setting, model, model, group(), sharded)


def by_hand(setting: Setting, start: Callable) -> Iterator[State]:
    """Lesson 13's data parallelism in a loop written out. `start(model)` gives two functions: the
    context of a backward pass that sends nothing, and what sums the gradients in the end."""
    model = make_model(setting)
    world = group()
    config = train_config(setting, world.world_size)
    optimizer = optimizer_of(setting, model)
    no_sync, finish = start(model)
    stream = batches(setting, world.rank, world.world_size)
    for step in range(setting.steps):
        set_learning_rate(optimizer, config, step)
        large_batch = list(islice(stream, config.grad_accum_steps))
        count = world.sum(sum(int((batch.targets != -100).sum()) for batch in large_batch))
        losses = []
        for batch in large_batch:
            is_last = len(losses) + 1 == len(large_batch)
            with nullcontext() if is_last else no_sync():
                loss = summed_loss(model, batch)[0] / count
                loss.backward()
            losses.append(loss.detach())
        finish()
        clip_grad_norm(model.parameters(), config.max_grad_norm)
        optimizer.step()
        model.zero_grad()
        yield world.sum(torch.stack(losses).sum()).item(), whole(model)


def naive(setting: Setting) -> Iterator[State]:
    "One all-reduce a parameter, after the backward pass."
    return by_hand(setting, lambda model: (nullcontext, partial(all_reduce_gradients, model)))


def bucketed(setting: Setting) -> Iterator[State]:
    "Small buckets, so that there are several, sent during the backward pass."

    def start(model):
        buckets = GradientBuckets(model, bucket_bytes=300_000)
        return buckets.no_sync, buckets.finish

    return by_hand(setting, start)


def global_batches(setting: Setting) -> Iterator:
    "The large batch of each step, whole, as where the model is cut and not the batch."
    stream = batches(setting)
    while True:
        yield list(islice(stream, train_config(setting).grad_accum_steps))


def n_targets(large_batch) -> int:
    return sum(int((batch.targets != -100).sum()) for batch in large_batch)


def parallel_optimizer(setting: Setting, model, parallel: TensorParallel):
    if setting.optimizer == "sgd":
        return optimizer_of(setting, model)
    return make_parallel_optimizer(model, train_config(setting), parallel)


def tensor(setting: Setting) -> Iterator[State]:
    "Matrices, heads and vocabulary cut in two."
    model = make_model(setting)
    parallel = tensor_parallel(model)
    optimizer = parallel_optimizer(setting, model, parallel)
    config = train_config(setting)
    for step, large_batch in enumerate(islice(global_batches(setting), setting.steps)):
        set_learning_rate(optimizer, config, step)
        total = 0.0
        for batch in large_batch:
            logits = model(batch.ids, batch.document_ids)
            loss = vocab_parallel_cross_entropy(logits, batch.targets, reduction="sum")
            loss = loss / n_targets(large_batch)
            loss.backward()
            total += loss.item()
        norm = parallel.grad_norm(model.parameters()).item()
        clip_grad_norm(model.parameters(), config.max_grad_norm, norm)
        optimizer.step()
        model.zero_grad()
        yield total, parallel.whole_weights(model)


@cache
def mesh() -> DeviceMesh:
    "Two times two ranks: the rows of the table share a model, its columns share a batch."
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))


def ddp_tensor(setting: Setting) -> Iterator[State]:
    "PyTorch's DDP over a model that is cut in two, four ranks."
    data, group = mesh().get_group("data"), mesh().get_group("tensor")
    model = make_model(setting)
    parallel = tensor_parallel(model, group)
    runner = DistributedDataParallel(model, process_group=data)
    optimizer = parallel_optimizer(setting, model, parallel)
    config = train_config(setting, 2)
    stream = batches(setting, dist.get_rank(data), 2)
    for step in range(setting.steps):
        set_learning_rate(optimizer, config, step)
        large_batch = list(islice(stream, config.grad_accum_steps))
        count = torch.tensor(n_targets(large_batch))
        dist.all_reduce(count, group=data)
        total = torch.zeros((), dtype=torch.float64)
        for batch in large_batch:
            is_last = batch is large_batch[-1]
            with nullcontext() if is_last else runner.no_sync():
                logits = runner(batch.ids, batch.document_ids)
                loss = vocab_parallel_cross_entropy(logits, batch.targets, group, "sum") / count
                (2 * loss).backward()  # DDP takes the mean over two ranks
            total += loss.detach()
        norm = parallel.grad_norm(model.parameters()).item()
        clip_grad_norm(model.parameters(), config.max_grad_norm, norm)
        optimizer.step()
        model.zero_grad()
        dist.all_reduce(total, group=data)
        yield total.item(), parallel.whole_weights(model)


def pipeline(schedule: Callable, setting: Setting) -> Iterator[State]:
    "A stage for each rank, and each row a micro-batch."
    world = group()
    stage = Stage(make_model(setting), world.rank, world.world_size)
    optimizer = optimizer_of(setting, stage)
    config = train_config(setting)
    for step, large_batch in enumerate(islice(global_batches(setting), setting.steps)):
        set_learning_rate(optimizer, config, step)
        rows = [Batch(*row) for batch in large_batch for row in zip(*(x.split(1) for x in batch))]
        steps = schedule(world.rank, world.world_size, len(rows))
        loss, _ = pipeline_step(stage, optimizer, steps, rows, config.max_grad_norm)
        yield loss, whole(stage)


CASES = {
    "ddp": (ddp, 2),
    "naive": (naive, 2),
    "bucketed": (bucketed, 2),
    "zero1": (zero1, 2),
    "fsdp": (fsdp, 2),
    "tensor": (tensor, 2),
    "ddp_tensor": (ddp_tensor, 4),
    "gpipe": (partial(pipeline, gpipe), 2),
    "1f1b": (partial(pipeline, one_f_one_b), 2),
    "four_stages": (partial(pipeline, one_f_one_b), 4),
}
LAYERS = {"gpipe": 2, "1f1b": 2, "four_stages": 4}  # one for each stage


def setting_for(name: str, setting: Setting) -> Setting:
    "The setting with as many layers as a case needs."
    if name in LAYERS:
        return replace(setting, model={"n_layers": LAYERS[name], **setting.model})
    return setting


def reference(setting: Setting, path, case=alone) -> None:
    "Train in this process, and keep the losses and the weights after each step in a file."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each rank has
    losses, weights = zip(*case(setting))
    torch.set_num_threads(threads)
    torch.save({"losses": losses, "weights": weights}, path)


class Difference(NamedTuple):
    "How far one rank is from the reference, at most, over all steps."
    steps: int
    loss: float      # nats
    weight: float
    names: set[str]  # of the weights that this rank could give


def compare(name: str, setting: Setting, path) -> Difference:
    "Run a case on this rank and compare it with the reference after each step."
    expected = torch.load(path, mmap=True)
    case, _ = CASES[name]
    losses = []
    weights = []
    for loss, mine in case(setting):
        step = len(losses)
        right = expected["weights"][step]
        losses.append(abs(loss - expected["losses"][step]))
        weights.append(max(float((mine[n] - right[n]).abs().max()) for n in mine))
    return Difference(len(losses), max(losses), max(weights), set(mine))
