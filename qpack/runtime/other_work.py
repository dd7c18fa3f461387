"""What other processes take of the cores while something is measured: all that was busy, less what was our own.

`/proc/stat` counts the busy time of each core, whoever used it; the process tree of qpack has its own. Time that a
hypervisor gave to other machines (steal) counts as other work: it is gone like theirs. Only the cores that this process
may use are counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import psutil

from qpack.core.speed import OtherWork

_STAT = Path("/proc/stat")
# Columns of a line of /proc/stat (proc_stat(5)): user nice system idle iowait irq softirq steal; the two of guests are
# in user and nice already.
_IDLE, _IOWAIT, _COUNTED = 3, 4, 8
# The counters have steps of 10 ms; a shorter measurement says nothing.
_SHORTEST = 1.0


@dataclass(frozen=True)
class Snapshot:
    """Seconds since some time in the past: the clock, busy time of all usable cores, and our own of it."""

    at: float
    busy: float
    own: float
    cores: int


@dataclass
class Watch:
    """What other work took between the beginning of a block and its end; None where it isn't known."""

    found: OtherWork | None = None


@contextmanager
def watch() -> Iterator[Watch]:
    """Measure what other processes than this one and its descendants take while the block runs."""
    seen, before = Watch(), snapshot()
    yield seen
    seen.found = between(before, snapshot())


def snapshot(root: int | None = None) -> Snapshot | None:
    """Now, with the process `root` (default: this one) and its descendants as our own. None where the system or the
    process can't be read.
    """
    cores = os.sched_getaffinity(0)
    try:
        busy = busy_seconds(_STAT.read_text(), cores)
        return Snapshot(monotonic(), busy, _tree_seconds(psutil.Process(root)), len(cores))
    except (OSError, ValueError, psutil.Error):
        return None


def between(before: Snapshot | None, after: Snapshot | None) -> OtherWork | None:
    """The share of the cores that others took from `before` to `after`. Pure."""
    if before is None or after is None or before.cores != after.cores or after.at - before.at < _SHORTEST:
        return None
    room = (after.at - before.at) * after.cores
    busy, own = after.busy - before.busy, after.own - before.own
    if busy <= 0:  # a system that doesn't count
        return None
    return OtherWork(share=min(1.0, max(0.0, (busy - own) / room)), cores=after.cores)


def busy_seconds(stat: str, cores: set[int]) -> float:
    """The busy time of some cores since boot, from the text of /proc/stat. Raises ValueError if one isn't in it."""
    ticks, seen = 0, 0
    for line in stat.splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in cores:
            counts = [int(field) for field in fields[:_COUNTED]]
            ticks += sum(counts) - counts[_IDLE] - counts[_IOWAIT]
            seen += 1
    if seen != len(cores):
        raise ValueError("not every core is in it")
    return ticks / os.sysconf("SC_CLK_TCK")


def _tree_seconds(root: psutil.Process) -> float:
    """Processor time of a process, its descendants, and those of them that have ended."""
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue  # its parent has its time now, or will
        total += times.user + times.system + times.children_user + times.children_system
    return total
