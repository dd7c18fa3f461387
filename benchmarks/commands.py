"""How quickly the command line answers, as ratios to a bare Python start measured beside it.

    python benchmarks/commands.py RECIPE

Each command runs in turn with `python -c pass`, several times; the ratio is taken pair by pair, so that a machine that
is slow for a while is slow for both. A build of RECIPE must be finished, so that building it again has nothing to do.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 9


def seconds(command: list[str]) -> float:
    """Wall time of a command that has to succeed."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def main(recipe: str) -> None:
    """Print one row a command: median seconds, and the median of the ratios to a bare start."""
    qpack = [sys.executable, "-m", "qpack.cli"]
    bare = [sys.executable, "-c", "pass"]
    commands = {
        "--help": ["--help"],
        "plan": ["plan", recipe],
        "build, nothing to do": ["build", recipe],
        "list": ["list"],
    }
    print(f"{'command':24}{'median s':>10}{'x bare Python':>16}")
    for name, arguments in commands.items():
        pairs = [(seconds(qpack + arguments), seconds(bare)) for _ in range(ROUNDS)]
        middle = statistics.median(took for took, _ in pairs)
        ratio = statistics.median(took / alone for took, alone in pairs)
        print(f"{name:24}{middle:10.3f}{ratio:16.1f}")


if __name__ == "__main__":
    main(sys.argv[1])
