"""Where the time of `qpack demo` goes: wall time and processor time of each phase, as a Markdown table.

    python benchmarks/demo_phases.py [options of `qpack demo`]

A phase begins with a line that the build prints. Processor time is that of qpack and of everything it started, and so
says the same on a busy machine as on a quiet one, where wall time doesn't: the last column has what other processes
took of the cores meanwhile.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from qpack.runtime import other_work
from qpack.runtime.other_work import Snapshot

_PHASES = (
    (r"making the environment (\S+)", r"environment \1"),
    (r"starting vLLM", "start of vLLM"),
    (r"vLLM \S+ is up", "first questions"),
    (r"latency and throughput", "load"),
    (r"\d+ interleaved rounds", "interleaved rounds"),
    (r"canary", "canary"),
    (r"perplexity", "held-out text"),
    (r"lm-eval", "tasks"),
)


def lines(running: subprocess.Popen[str]) -> Iterator[tuple[str, Snapshot]]:
    """Each line that the process prints on stderr, with what was used until then; at the end an empty one."""
    # A process that ends takes its time along, unless its parent waits for it: so the last look that saw it counts.
    latest = [other_work.snapshot(running.pid)]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            if (now := other_work.snapshot(running.pid)) is not None and now.own >= (latest[-1] or now).own:
                latest.append(now)
                del latest[:-1]

    watching = threading.Thread(target=look)
    watching.start()
    assert running.stderr is not None
    for line in running.stderr:
        print(line, end="", file=sys.stderr, flush=True)
        yield line, latest[-1]  # type: ignore[misc]
    ended.set()
    watching.join()
    yield "", latest[-1]  # type: ignore[misc]


def main(arguments: list[str]) -> int:
    """Run the demo and print the table. Returns the demo's exit code."""
    began = time.monotonic()
    stage, phase, last = "", "start", other_work.snapshot()
    phases: dict[tuple[str, str], list[float]] = {}
    command = [sys.executable, "-m", "qpack.cli.app", "demo", "--verbose", *arguments]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line, now in lines(running):
        if last is not None and now is not None and now.own >= last.own:
            spent = phases.setdefault((stage, phase), [0.0, 0.0, 0.0])
            spent[0] += now.at - last.at
            spent[1] += now.own - last.own
            spent[2] += max(0.0, now.busy - last.busy - (now.own - last.own))
        last = now
        if found := re.match(r"\[\d+/\d+\] (\w+):", line):
            stage, phase = found[1], ""
        for pattern, name in _PHASES:
            if found := re.match(rf"\s*{pattern}", line):
                phase = found.expand(name)
    print("\n| Stage | Phase | Wall s | Processor s | Other work, cores |\n| --- | --- | --- | --- | --- |")
    for (stage, phase), (wall, own, others) in phases.items():
        print(f"| {stage} | {phase} | {wall:.1f} | {own:.1f} | {others / max(wall, 0.01):.2f} |")
    own = sum(spent[1] for spent in phases.values())
    print(f"| all | | {time.monotonic() - began:.1f} | {own:.1f} | |")
    return running.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
