"""What tests/test_torchrun.py does in the processes of a pool, which may be fewer than the pool has."""

import os
import resource
import time
from contextlib import chdir, contextmanager, redirect_stderr
from io import StringIO
from itertools import islice
from threading import Event
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist

from llm_course.dataloader import Batches
from llm_course.gpt import GPT
from llm_course.model_config import GPTConfig
from llm_course.optim import make_optimizer
from llm_course.packing import Documents
from llm_course.processes import ParallelConfig, process_group, wrap
from llm_course.run_state import unique_state_dict
from llm_course.settings import TrainConfig
from llm_course.sharded_checkpoint import load_parallel, save_parallel
from llm_course.sharded_state import optimizer_tensors
from llm_course.training import train
from llm_course.world import World

N_DOCUMENTS = 200
DOCUMENTS = Documents(np.repeat(np.arange(N_DOCUMENTS), 6), np.arange(0, 6 * N_DOCUMENTS + 1, 6))
CONFIG = TrainConfig(max_steps=9, batch_size=8, seq_len=16, warmup_steps=2, device="cpu")


def _join(rank, size, meeting):
    "Become a rank of a group that meets in a file; that file is used once."
    if dist.is_initialized():
        dist.destroy_process_group()
    if rank < size:
        path = meeting.with_name(f"{meeting.name}-{size}")
        dist.init_process_group("gloo", path.as_uri(), rank=rank, world_size=size)


@contextmanager
def group_of(size, meeting):
    "The first ranks of a pool as a group of their own: this rank's world, None for one outside."
    rank = dist.get_rank()
    whole = dist.get_world_size()
    _join(rank, size, meeting)
    try:
        yield World(rank, size) if rank < size else None
    finally:
        _join(rank, whole, meeting.with_name(f"{meeting.name}-after"))


def on_ranks(size, meeting, function, *args):
    "Call a function in a smaller group; None from those outside."
    with group_of(size, meeting) as world:
        return None if world is None else function(world, *args)


def make_parts(world, kind, seed):
    "Model, optimizer and this rank's batches: one epoch of documents that are each one number."
    torch.manual_seed(seed)
    shape = GPTConfig(vocab_size=N_DOCUMENTS, n_layers=2, n_heads=2, d_model=32, qk_norm=True)
    model = wrap(GPT(shape), ParallelConfig(kind=kind))
    rows = CONFIG.batch_size // world.world_size
    place = dict(rank=world.rank, world_size=world.world_size)
    batches = Batches(DOCUMENTS, rows, CONFIG.seq_len, epochs=1, **place)
    return model, make_optimizer(model, CONFIG), batches


def journey(world, run, kind, until):
    "Take a run up where it stands, or begin it; train; save. Losses, and this rank's targets."
    model, optimizer, batches = make_parts(world, kind, 99 if run.exists() else 1)
    step = 0
    if run.exists():
        step = load_parallel(run, model, optimizer, batches, world)
    read = []

    def watched():
        for batch in batches:
            read.append(batch.targets[batch.targets >= 0])
            yield batch

    steps = train(model, watched(), CONFIG, optimizer, start_step=step, world=world)
    losses = [metrics.loss for metrics in islice(steps, until - step)]
    facts = {"train": {"seed": 5}}
    save_parallel(run, until, model, None, optimizer, batches, facts, world=world)
    return losses, torch.cat(read)


def contents(world, checkpoint, kind, other=None):
    "All tensors after loading, whole; a random number of this rank. Saved again, where asked for."
    model, optimizer, batches = make_parts(world, kind, 99)
    load_parallel(checkpoint, model, optimizer, batches, world)
    if other is not None:
        step = int(checkpoint.name.removeprefix("step-"))
        facts = {"train": {"seed": 5}}
        save_parallel(other, step, model, None, optimizer, batches, facts, world=world)
    tensors = {**unique_state_dict(model), **optimizer_tensors(model, optimizer)}
    whole = {name: getattr(x, "full_tensor", x.clone)() for name, x in tensors.items()}
    return whole, torch.rand(1).item()


def refusal(world, run, limited=None, load=None):
    "What this rank says where a rank's disk is full, or a checkpoint is damaged."
    model, optimizer, batches = make_parts(world, "fsdp", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if world.rank == limited:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        if load is not None:
            load_parallel(load, model, optimizer, batches, world)
        save_parallel(run, 1, model, None, optimizer, batches, world=world)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def job_of(size, port, meeting):
    "The first ranks of a pool as torchrun starts them, in no group yet. Whether this is one of them."
    rank = dist.get_rank()
    told = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    told |= {"TORCHELASTIC_RUN_ID": "pool", "TORCHELASTIC_USE_AGENT_STORE": True}
    whole = dist.get_world_size()
    dist.destroy_process_group()
    try:
        with patch.dict(os.environ, {name: str(value) for name, value in told.items()}):
            yield rank < size
    finally:
        _join(rank, whole, meeting)


def command(size, port, meeting, folder, words):
    "llm_train in a folder: its exit code, and what it complained of."
    from llm_course import cli

    errors = StringIO()
    with job_of(size, port, meeting) as is_one, chdir(folder), redirect_stderr(errors):
        return (cli.llm_train(words), errors.getvalue()) if is_one else None


def part(size, port, meeting):
    "Leave a group of which a thread is still in Python; its model goes afterwards."
    import torch.distributed.nn  # it keeps for ever the group that is there when it is loaded

    begun = Event()

    def late(done):
        begun.set()
        time.sleep(0.2)  # and then wants Python's lock again

    with job_of(size, port, meeting) as is_one:
        if is_one:
            with process_group(ParallelConfig("ddp")) as world:
                model = make_parts(world, "ddp", 1)[0]
                time.sleep(0.2 * world.rank)  # rank 0 waits for the sum, so that a thread calls late
                dist.all_reduce(torch.ones(1), async_op=True).get_future().then(late)
                begun.wait()
            del model
