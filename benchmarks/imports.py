"""How long `import llm_course` takes: Python that imports it beside Python that does nothing.

    python benchmarks/imports.py [--rounds 20]
"""

import argparse
import subprocess
import sys
from statistics import median

from in_turn import measure_in_turn

LINES = {"nothing": "pass", "import llm_course": "import llm_course"}


def start(line: str) -> None:
    "A Python of its own that runs one line."
    subprocess.run([sys.executable, "-c", line], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="how often each is started")
    rounds = parser.parse_args().rounds
    starts = {name: lambda line=line: start(line) for name, line in LINES.items()}
    seconds = measure_in_turn(starts, rounds)
    for name, times in seconds.items():
        print(f"{name:20} {1000 * median(times):7.1f} ms")
    nothing, package = (median(times) for times in seconds.values())
    print(f"{'the package alone':20} {1000 * (package - nothing):7.1f} ms, wanted: 50 ms at most")
    print(f"medians of {rounds} starts in turn, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
