"""Fair timing on a shared machine: the competitors run in turn, and medians are compared.

A shared machine changes its speed from minute to minute. When A, B, A, B, … run in turn, both meet
the same minutes, so the ratio of their times says more than either time alone.
"""

import statistics
import time
from collections.abc import Callable


def measure_in_turn(
    functions: dict[str, Callable[[], object]],  # each is called without arguments
    rounds: int = 5,                             # how often all of them run, one after the other
    warm_up: bool = False,                       # True: one round more before, which is not timed
) -> dict[str, list[float]]:                     # seconds of each call, by name
    "Wall-clock seconds of each function, called in turn `rounds` times."
    if warm_up:
        for function in functions.values():
            function()
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(
    ours: list[float],     # seconds of one function, from `measure_in_turn`
    theirs: list[float],   # seconds of another, from the same rounds
) -> float:                # above 1: the first one is faster
    "Median over the rounds of how many times as fast `ours` is as `theirs`."
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
