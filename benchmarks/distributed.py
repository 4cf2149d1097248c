"""Two processes against one with two threads, on the same global batch: tokens a second as a ratio,
and the bytes that a rank really sends against the formula.

    python benchmarks/distributed.py [--rounds 5] [--steps 10] [--kinds ddp fsdp] [--ranks 2]

One process with as many threads as the others have processes trains the demo's model; then as many
processes with one thread each train it by DDP and by FSDP, as `llm_train` does. They run in turn,
because a shared machine changes its speed, and medians over the rounds are compared. Bytes are
counted at the sockets: Linux keeps, for each TCP connection of a process, how many bytes of content
it has sent (TCP_INFO), so what other programs send does not count. Messages go by gloo over this
machine's loopback: the ratio says nothing about GPUs.
"""

import argparse
import os
import platform
import socket
import struct
import time
from dataclasses import replace
from statistics import median

import torch

from llm_course.capacity import TrainingJob, block_and_rest
from llm_course.config import load_config
from llm_course.cost import parameter_count, shapes_of
from llm_course.planner import bytes_per_step, muon_numbers
from llm_course.ranks import Ranks
from llm_course.timeline import sent_bytes

BYTES_SENT = 200  # where Linux has `tcpi_bytes_sent`, 8 bytes, in its struct tcp_info


def sent_so_far() -> int:
    "Bytes of content that this process has sent over the TCP connections that it has open."
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            copy = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # the one that listed the folder
            continue
        with copy:
            if copy.type != socket.SOCK_STREAM or copy.family == socket.AF_UNIX:
                continue
            info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_SENT + 8)
            if len(info) >= BYTES_SENT + 8:
                total += struct.unpack_from("=Q", info, BYTES_SENT)[0]
    return total


def train(kind: str, config: str, settings: list[str], steps: int) -> tuple[float, float]:
    "Seconds of the median step on this rank, and the bytes that it sends in a step."
    import torch.distributed as dist

    from llm_course.gpt import GPT
    from llm_course.optim import make_optimizer
    from llm_course.packing import Batch
    from llm_course.processes import ParallelConfig, wrap
    from llm_course.throughput import optimize_for_training, train_step
    from llm_course.world import World

    run = load_config(config, settings)
    world = World(dist.get_rank(), dist.get_world_size())
    torch.manual_seed(0)
    run.model.vocab_size = run.tokenizer.vocab_size
    model = GPT(run.model)
    optimize_for_training(model)
    runner = wrap(model, ParallelConfig(kind))
    optimizer = make_optimizer(model, run.train)
    ids = torch.randint(run.model.vocab_size, (run.train.batch_size, run.train.seq_len))
    mine = ids.chunk(world.world_size)[world.rank]
    seconds = []
    for step in range(steps + 2):
        if step == 2:  # two to warm up
            before = sent_so_far() if platform.system() == "Linux" else 0
        start = time.perf_counter()
        train_step(runner, optimizer, [Batch(mine, mine)], world=world)
        seconds.append(time.perf_counter() - start)
    after = sent_so_far() if platform.system() == "Linux" else 0
    return median(seconds[2:]), (after - before) / steps


def formula(job: TrainingJob) -> tuple[float, str]:
    "Bytes that a rank should send in a step, and why. gloo does by gathering what it cannot do."
    if job.kind == "ddp":
        size = parameter_count(shapes_of(job.model))
        return bytes_per_step(job), f"2(N-1)/N of {size:,} gradients of 4 bytes"
    block, rest = block_and_rest(job.model)
    whole = 4 * (block * job.model.n_layers + rest)
    n = job.n_gpus
    expected = bytes_per_step(replace(job, optimizer="adamw"))
    nccl = f"{bytes_per_step(job) / 1e6:.2f} MB"
    expected += sent_bytes("all-reduce", whole, n) - sent_bytes("reduce-scatter", whole, n)
    why = "weights gathered, the blocks' twice; gradients all-reduced, for gloo has no reduce-scatter"
    if job.optimizer == "muon":
        expected += 2 * sent_bytes("all-gather", 4 * muon_numbers(job.model), n)
        why += "; Muon's matrices gathered twice, for it has no all-to-all"
    return expected, f"{why}; NCCL would send {nccl}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often all take their turn")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a round")
    parser.add_argument("--ranks", type=int, default=2, help="processes, and threads of the one")
    parser.add_argument("--kinds", nargs="+", default=["ddp", "fsdp"], choices=["ddp", "fsdp"])
    parser.add_argument("--config", default="configs/train_small.yaml", help="the model's")
    parser.add_argument("settings", nargs="*", help="changes of the config")
    args = parser.parse_intermixed_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # for the processes, as the commands do
    run = load_config(args.config, args.settings)
    run.model.vocab_size = run.tokenizer.vocab_size
    shape = (run.train.batch_size, run.train.seq_len)
    optimizer = run.train.optimizer
    kinds = {}
    for kind in args.kinds:
        kinds[kind] = TrainingJob(run.model, 1, *shape, 1, args.ranks, kind, optimizer=optimizer)
    print(f"PyTorch {torch.__version__}, {os.cpu_count()} cores, {platform.machine()}, gloo")
    size = parameter_count(shapes_of(run.model))
    print(f"{size:,} parameters, {shape[0]} x {shape[1]} tokens a step, float32, {optimizer}")
    load = os.getloadavg()[0]
    print(f"medians of {args.rounds} rounds of {args.steps} steps, in turn; load {load:.1f}\n")

    seconds = {kind: [] for kind in ("none", *kinds)}
    sent = {kind: [] for kind in kinds}
    patience = 600.0
    one = Ranks(1, patience, n_threads=args.ranks)
    with one as alone, Ranks(args.ranks, patience) as ranks:
        for _ in range(args.rounds):
            for kind in seconds:
                pool = alone if kind == "none" else ranks
                answers = pool.run(train, kind, args.config, args.settings, args.steps)
                seconds[kind].append(max(time for time, _ in answers))
                if kind != "none":
                    sent[kind].append(sum(n for _, n in answers) / len(answers))
    tokens = shape[0] * shape[1]
    names = {"none": f"1 process, {args.ranks} threads"}
    for kind, values in seconds.items():
        ratio = median(a / b for a, b in zip(seconds["none"], values))
        name = names.get(kind, f"{args.ranks} processes, {kind}")
        print(f"{name:24}{tokens / median(values):10,.0f} tokens/s{ratio:8.2f} times one process")
    print()
    for kind, job in kinds.items():
        expected, why = formula(job)
        measured = median(sent[kind])
        share = measured / expected
        print(f"{kind:5} each rank sends {measured / 1e6:.2f} MB a step, {share:.1%} of the formula")
        print(f"      ({why})")


if __name__ == "__main__":
    main()
