"""qpack's own share of a build: the wall time in which no engine and no server of it exists.

    python benchmarks/own_share.py RECIPE [build options]

Runs the build, looks every 50 ms whether it has any process below it, and prints the time with and without one,
together with the processor time of the qpack process itself.
"""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

STEP = 0.05


def main(arguments: list[str]) -> int:
    """Print the shares and return the build's exit code."""
    started = last = time.monotonic()
    alone = own = 0.0
    running = subprocess.Popen([sys.executable, "-m", "qpack.cli.start", "build", *arguments])
    process = psutil.Process(running.pid)
    while running.poll() is None:
        time.sleep(STEP)
        now = time.monotonic()
        try:
            times = process.cpu_times()
            own = times.user + times.system
            alone += 0.0 if process.children() else now - last
        except psutil.NoSuchProcess:
            break
        last = now
    wall = time.monotonic() - started
    print(f"\nwall time                           {wall:8.1f} s")
    print(f"without any engine or server        {alone:8.1f} s  {alone / wall:6.1%}")
    print(f"processor time of qpack itself      {own:8.1f} s  {own / wall:6.1%} of wall time")
    return running.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
