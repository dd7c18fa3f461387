"""Memory that a worker may use, and whether one that failed had run out of it.

Python and torch raise an exception, native allocators put it into an exception's text or their last lines, and the
kernel leaves it in its own log and counters alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

Place = Literal["gpu", "host"]

_GIB = 2**30
# Above this share of what it may take, a process that was killed without another reason was killed for its memory.
_NEAR = 0.9
_VMSTAT = Path("/proc/vmstat")
# torch.OutOfMemoryError; the driver's and cuBLAS' words, which torch wraps in a RuntimeError.
_GPU = re.compile(
    r"\b(torch\.|cuda\.)?OutOfMemoryError\b|(CUDA|HIP|XPU) out of memory|CUDA error: out of memory"
    r"|CU(BLAS|DNN|SPARSE|SOLVER)_STATUS_ALLOC_FAILED"
)
# Python; torch's CPU allocator (c10/core/impl/alloc_cpu.cpp); ENOMEM as libc, mmap and Rust print it; C++; numpy.
_HOST = re.compile(
    r"\b_?(Array)?MemoryError\b|DefaultCPUAllocator|can't allocate memory|not enough memory: you tried to allocate"
    r"|Cannot allocate memory|\(os error 12\)|\[Errno 12\]|std::bad_alloc|memory allocation of \d+ bytes failed"
)


def ran_out(words: Iterable[str]) -> Place | None:
    """Whose memory it was that an error says it couldn't get more of: `words` are an exception's type and text and
    those of its causes, or the last lines of a log. None when they say nothing of it.
    """
    said = "\n".join(words)
    if _GPU.search(said):
        return "gpu"
    return "host" if _HOST.search(said) else None


@dataclass(frozen=True)
class Limit:
    """`bytes` that a process may take, and what sets them."""

    bytes: int
    why: str


def limit(pid: int | str = "self") -> Limit:
    """The least of: the machine's memory, the limit of the process's cgroup, its RLIMIT_AS."""
    found = [Limit(psutil.virtual_memory().total, "this machine's memory")]
    found += [Limit(size, "the limit of its cgroup") for group in _cgroups(pid) if (size := _cgroup_limit(group))]
    with contextlib.suppress(OSError, ValueError):
        soft = resource.getrlimit(resource.RLIMIT_AS)[0] if pid == "self" else _address_space(int(pid))
        if soft not in (resource.RLIM_INFINITY, -1):
            found.append(Limit(soft, "its limit of address space, RLIMIT_AS"))
    return min(found, key=lambda each: each.bytes)


def _address_space(pid: int) -> int:
    return resource.prlimit(pid, resource.RLIMIT_AS)[0]


def _cgroups(pid: int | str) -> list[Path]:
    """The folders of the process's memory cgroup and of those above it, innermost first; version 1 or 2."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            roots = [Path("/sys/fs/cgroup/memory")]
        elif not controllers:
            roots = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")]
        else:
            continue
        for root in roots:
            # In a container the path may be that of the host, and the mount its own.
            folder = root / path.lstrip("/")
            found += [each for each in (folder, *folder.parents) if each.is_relative_to(root) and each.is_dir()]
    return found


def _cgroup_limit(group: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            size = int((group / name).read_text())
            # Version 1 says "no limit" with the largest multiple of a page.
            return size if size < 2**62 else None
    return None


def _kills(file: Path) -> int:
    """The count of `oom_kill` in a file of lines of a name and a number; 0 where there is none."""
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return 0


@dataclass
class Watch:
    """Looks at a worker while it runs, so that its death can be explained. `peak` is resident bytes of its tree."""

    peak: int = 0
    limit: Limit = field(default_factory=limit)
    pids: set[int] = field(default_factory=set)
    _counters: dict[Path, int] = field(default_factory=lambda: {_VMSTAT: _kills(_VMSTAT)})

    def look(self, supervisor: int) -> None:
        """One look: some system calls a process."""
        with contextlib.suppress(psutil.Error):
            size = 0
            for child in psutil.Process(supervisor).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    size += child.memory_info().rss
                    self._add_process(child.pid)
            self.peak = max(self.peak, size)

    def _add_process(self, pid: int) -> None:
        found = limit(pid)  # which may be set at any time
        if found.bytes < self.limit.bytes:
            self.limit = found
        if pid not in self.pids:
            self.pids.add(pid)
            for group in _cgroups(pid):
                for name in ("memory.events", "memory.oom_control"):
                    self._counters.setdefault(group / name, _kills(group / name))

    def killed(self) -> str:
        """The sign that a worker got SIGKILL for its memory, in words; empty when there is none."""
        if any(pid in self.pids for pid in _in_the_kernels_log()):
            return "the kernel's log names it as out of memory"
        risen = [file for file, before in self._counters.items() if _kills(file) > before]
        if any(file != _VMSTAT for file in risen):
            return "the kernel ended a process of its cgroup, which was out of memory"
        if risen:
            return "the kernel ended a process while it ran, as memory ran out"
        if self.peak > _NEAR * self.limit.bytes:
            return "its memory was near its limit"
        return ""

    def took(self) -> str:
        """Its limit and its use of memory, in words."""
        may = f"it may use {self.limit.bytes / _GIB:.2f} GiB ({self.limit.why})"
        return f"{may}, and {self.peak / _GIB:.2f} GiB were in use" if self.peak else may


_KILLED = re.compile(r"Killed process (\d+)|oom-kill:.*\bpid=(\d+)")


def _in_the_kernels_log() -> set[int]:
    """Processes that the kernel says it ended for memory; none where its log can't be read."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        try:
            while True:
                with contextlib.suppress(BrokenPipeError):  # a record was overwritten: go on with the next
                    for match in _KILLED.finditer(os.read(descriptor, 8192).decode(errors="replace")):
                        found.add(int(match[1] or match[2]))
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)
    return found
