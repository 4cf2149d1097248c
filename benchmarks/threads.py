"""Training beside other programs: tokens a second for each setting of threads and waiting, alone and
beside processes that keep a core busy.

    python benchmarks/threads.py [--busy 0 1 2] [--seconds 3] [--rounds 3]

With two threads a product is done when both are. Where another program holds one's core, the other
waits: by default it spins, which takes the core from whoever could finish the work. The settings
are read when torch is loaded, so each is measured in a process of its own, in turn.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from statistics import median

SETTINGS = {
    "as torch does it": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "KMP_BLOCKTIME=0": {"KMP_BLOCKTIME": "0"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "threads by load": {"THREADS_BY_LOAD": "1"},
}
KNOWN = {name for more in SETTINGS.values() for name in more}


def free_threads() -> int:
    "How many cores are free by the system's load of the last minute, at least one."
    import torch

    return max(1, torch.get_num_threads() - round(os.getloadavg()[0]))


def train(seconds: float, config: str) -> dict:
    "Train a new model on random ids; its threads and its tokens a second in the median step."
    import torch

    from llm_course.config import load_config
    from llm_course.gpt import GPT
    from llm_course.optim import make_optimizer
    from llm_course.packing import Batch
    from llm_course.throughput import optimize_for_training
    from llm_course.training import train as steps

    if "THREADS_BY_LOAD" in os.environ:
        torch.set_num_threads(free_threads())
    run = load_config(config, [])
    run.train.max_steps = 1_000_000
    run.model.vocab_size = run.tokenizer.vocab_size
    torch.manual_seed(0)
    model = GPT(run.model)
    optimize_for_training(model)
    shape = (run.train.batch_size, run.train.seq_len)
    ids = torch.randint(run.model.vocab_size, shape)
    batches = iter(lambda: Batch(ids, ids), None)
    optimizer = make_optimizer(model, run.train)
    speeds = []
    for metrics in steps(model, batches, run.train, optimizer):
        speeds.append(metrics.tokens_per_second)
        if metrics.seconds > seconds and len(speeds) > 3:
            break
    return {"threads": torch.get_num_threads(), "speed": median(speeds[1:])}


@contextlib.contextmanager
def busy_processes(n: int):
    "So many processes that do nothing but compute, for the time of a block."
    command = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(command) for _ in range(n)]
    try:
        time.sleep(0.2)
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measure(name: str, seconds: float, config: str) -> dict:
    "One setting, in a process of its own."
    kept = {key: value for key, value in os.environ.items() if key not in KNOWN}
    code = f"import json, threads; print(json.dumps(threads.train({seconds}, {config!r})))"
    paths = [os.path.dirname(os.path.abspath(__file__)), *sys.path]
    env = kept | SETTINGS[name] | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="busy processes")
    parser.add_argument("--seconds", type=float, default=3.0, help="of training, for each setting")
    parser.add_argument("--rounds", type=int, default=3, help="how often all take their turn")
    parser.add_argument("--config", default="configs/train_small.yaml", help="the model's")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    args = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load of the last minute {load:.1f} (0: a quiet machine)")
    for busy in args.busy:
        print(f"\nbeside {busy} busy processes, {args.config}")
        found = {name: [] for name in args.settings}
        for _ in range(args.rounds):
            for name in args.settings:
                with busy_processes(busy):
                    found[name].append(measure(name, args.seconds, args.config))
        first = median(run["speed"] for run in found[args.settings[0]])
        for name, runs in found.items():
            speed = median(run["speed"] for run in runs)
            threads = runs[0]["threads"]
            print(f"{name:26} {threads:2} threads {speed:9,.0f} tokens/s  {speed / first:6.2f} times")


if __name__ == "__main__":
    main()
