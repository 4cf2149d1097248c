"""Training and writing beside other programs: tokens a second for each setting of threads and
waiting, alone and beside processes that keep a core busy.

    python benchmarks/threads.py [--work train generate] [--busy 0 1 2] [--seconds 3] [--rounds 3]

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
from itertools import product
from statistics import median

SETTINGS = {
    "torch": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin1000": {"GOMP_SPINCOUNT": "1000"},  # what the commands set
    "spin10000": {"GOMP_SPINCOUNT": "10000"},
    "block0": {"KMP_BLOCKTIME": "0"},
    "one": {"OMP_NUM_THREADS": "1"},
    "by-load": {"THREADS_BY_LOAD": "1"},
}
KNOWN = {name for more in SETTINGS.values() for name in more}


def free_threads() -> int:
    "How many cores are free by the system's load of the last minute, at least one."
    import torch

    return max(1, torch.get_num_threads() - round(os.getloadavg()[0]))


def train(seconds: float, config: str) -> float:
    "Train a new model on random ids; tokens a second in the median step."
    import torch

    from llm_course.config import load_config
    from llm_course.gpt import GPT
    from llm_course.optim import make_optimizer
    from llm_course.packing import Batch
    from llm_course.throughput import optimize_for_training
    from llm_course.training import train as steps

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
    return median(speeds[1:])


def generate(seconds: float, config: str) -> float:
    "Write with the bundled model; tokens a second in the median text of 64."
    from llm_course.checkpoint import load_model
    from llm_course.fast import optimize_for_decoding
    from llm_course.sampling import generate_text

    model, tokenizer = load_model()
    model = optimize_for_decoding(model)
    speeds = []
    end = time.perf_counter() + seconds
    while len(speeds) < 4 or time.perf_counter() < end:
        start = time.perf_counter()
        n = sum(1 for _ in generate_text(model, tokenizer, "One day", 64, temperature=0))
        speeds.append(n / (time.perf_counter() - start))
    return median(speeds[1:])


def work(name: str, seconds: float, config: str) -> None:
    "What a process of its own does: print its threads and its speed."
    import torch

    if "THREADS_BY_LOAD" in os.environ:
        torch.set_num_threads(free_threads())
    speed = {"train": train, "generate": generate}[name](seconds, config)
    print(json.dumps({"threads": torch.get_num_threads(), "speed": speed}))


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


def measure(name: str, what: str, seconds: float, config: str) -> dict:
    "One setting, in a process of its own."
    kept = {key: value for key, value in os.environ.items() if key not in KNOWN}
    code = f"import threads; threads.work({what!r}, {seconds}, {config!r})"
    paths = [os.path.dirname(os.path.abspath(__file__)), *sys.path]
    env = kept | SETTINGS[name] | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", nargs="+", default=["train", "generate"], help="what is measured")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="busy processes")
    parser.add_argument("--seconds", type=float, default=3.0, help="of training, for each setting")
    parser.add_argument("--rounds", type=int, default=3, help="how often all take their turn")
    parser.add_argument("--config", default="configs/train_small.yaml", help="the model's")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    args = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load of the last minute {load:.1f} (0: a quiet machine)")
    for what, busy in product(args.work, args.busy):
        print(f"\n{what} beside {busy} busy processes")
        found = {name: [] for name in args.settings}
        for _ in range(args.rounds):
            for name in args.settings:
                with busy_processes(busy):
                    found[name].append(measure(name, what, args.seconds, args.config))
        first = median(run["speed"] for run in found[args.settings[0]])
        for name, runs in found.items():
            speed = median(run["speed"] for run in runs)
            threads = runs[0]["threads"]
            variables = " ".join("=".join(pair) for pair in SETTINGS[name].items())
            ratio = f"{speed / first:6.2f} times"
            print(f"{name:10} {threads} threads {speed:9,.0f} tokens/s {ratio}  {variables}")


if __name__ == "__main__":
    main()
