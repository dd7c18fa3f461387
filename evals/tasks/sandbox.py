"""Runs untrusted code in a process without files, network, or other processes: Linux's seccomp and resource limits.

    values("def f(x): return x + 1", "f", [[1], [2]])    ->    [{"value": 2}, {"value": 3}]

The child (sandbox_child.py) gives up every system call but a few for memory, time, and what is already open: an empty
standard input and a pipe back. So it opens nothing, connects to nothing, starts and kills nothing; the kernel enforces
that, whatever the code does to the interpreter. Memory, processor time, wall time and the size of the answer are
limited. No expected value is in the child: what it says is judged here.

`require` raises `NoSandboxError` where that can't be had (another system or processor, no seccomp), and where a child
that tries to break out succeeds. Standard library alone: it runs in lm-eval's environment.
"""

from __future__ import annotations

import functools
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHILD = Path(__file__).parent / "sandbox_child.py"
WALL_SECONDS = 60.0
"""What ends code that waits for nothing; the child's own limit of processor time holds on a busy machine too."""
LONGEST_ANSWER = 1 << 18
LONGEST_CODE = 1 << 16

_TRIES = """
import ctypes, sys
def tries():
    os = sys.modules.get("os") or sys.modules["posix"]
    import posix
    libc = ctypes.CDLL(None, use_errno=True)
    found = []
    for what in (lambda: posix.open("/etc/passwd", 0), lambda: posix.open("/tmp/qpack-sandbox", 0o101),
                 lambda: posix.fork() or posix._exit(0), lambda: posix.kill(posix.getppid(), 0),
                 lambda: posix.listdir("/")):
        try:
            what()
            found.append(True)
        except OSError:
            found.append(False)
    return found + [libc.socket(2, 1, 0) >= 0]
"""
"""Opens, writes, forks, signals, lists, connects: each True would be a way out."""


class NoSandboxError(RuntimeError):
    """Untrusted code can't be run apart on this machine."""


def values(code: str, function: str, calls: Sequence[Sequence[Any]]) -> list[dict[str, Any]] | None:
    """What `function` of the code gives for each call: {"value": ...}, or {"error": its exception}. None where the
    code has no answer: it ended, hung, or said too much. Raises NoSandboxError.
    """
    require()
    return _run(code, function, calls) if len(code.encode(errors="replace")) <= LONGEST_CODE else None


@functools.cache
def require() -> None:
    """See to it that the sandbox holds on this machine. Raises NoSandboxError."""
    if sys.platform != "linux":
        raise NoSandboxError(f"code is only run on Linux, in a seccomp sandbox, and this is {sys.platform}")
    found = _run(_TRIES, "tries", [[]])
    if found is None or "value" not in found[0]:
        raise NoSandboxError(
            f"the sandbox for code doesn't start here: the kernel offers no seccomp filter, or the processor "
            f"({os.uname().machine}) isn't x86_64 or aarch64 (answer: {found})"
        )
    if any(found[0]["value"]):
        raise NoSandboxError(
            f"the sandbox for code doesn't hold here (file, write, fork, kill, list, connect: {found})"
        )


def _run(code: str, function: str, calls: Sequence[Sequence[Any]]) -> list[dict[str, Any]] | None:
    job = json.dumps({"code": code, "function": function, "calls": list(calls)}).encode()
    command = [sys.executable, "-I", "-S", str(CHILD)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, cwd="/",
        start_new_session=True,
    ) as child:  # fmt: skip
        try:
            said = _talk(child, job)
        finally:
            child.kill()
    try:
        answer = json.loads(said) if said is not None else None
    except (ValueError, RecursionError):
        return None
    fits = isinstance(answer, list) and len(answer) == len(calls)
    return answer if fits and all(isinstance(each, dict) for each in answer) else None


def _talk(child: subprocess.Popen[bytes], job: bytes) -> bytes | None:
    """Send the job, read the answer up to the limits of size and time."""
    assert child.stdin is not None
    assert child.stdout is not None
    end, said = time.monotonic() + WALL_SECONDS, b""
    try:
        child.stdin.write(job)
        child.stdin.close()
    except OSError:
        return None
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while selector.select(max(0.0, end - time.monotonic())):
            part = os.read(child.stdout.fileno(), 1 << 16)
            said += part
            if not part:
                return said
            if len(said) > LONGEST_ANSWER:
                return None
    return None
