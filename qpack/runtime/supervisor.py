"""Runs one command and makes sure that nothing of it outlives qpack, however qpack ends.

Started as `python -I -S supervisor.py GRACE COMMAND...` with the lifeline, a pipe whose other end only qpack holds, as
its standard input. When that pipe closes (qpack ended, was killed, or asks for it), when SIGTERM arrives, or when the
command ends, every process that the command started is ended too: first SIGTERM, after GRACE seconds SIGKILL.

It is a child subreaper (prctl(2), PR_SET_CHILD_SUBREAPER), so processes that were detached from their parent, in
sessions of their own or not, become its children and can be found. Standard library only: it runs before anything is
installed.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(grace: float, command: list[str]) -> int:
    """Run `command` and return its exit code (negative for a signal, as subprocess has it)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            close_fds=False,
            start_new_session=True,
            # The last resort, should the supervisor itself be killed.
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
        )
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127

    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ, "lifeline")
    selector.register(wake_read, selectors.EVENT_READ, "signal")
    stopping = False
    while child.poll() is None and not stopping:
        for key, _ in selector.select():
            if key.data == "lifeline":
                stopping = not os.read(0, 1024)
            else:
                numbers = os.read(wake_read, 1024)
                stopping = stopping or signal.SIGTERM in numbers or signal.SIGINT in numbers
    _end_all(child, grace if stopping else 2.0)
    return child.returncode


def _end_all(child: subprocess.Popen[bytes], grace: float) -> None:
    """Ask politely, then don't ask; return when there is no descendant left."""
    deadline = time.monotonic() + grace
    _signal_all(signal.SIGTERM)
    while True:
        child.poll()
        _reap(child.pid)
        alive = _descendants()
        if not alive:
            break
        if time.monotonic() > deadline:
            _signal_all(signal.SIGKILL)
        time.sleep(0.02)
    child.wait()


def _reap(keep: int) -> None:
    """Collect orphans that ended; the command itself is collected by its Popen."""
    for pid in _descendants(dead=True):
        if pid != keep:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue


def _signal_all(number: int) -> None:
    for pid in _descendants():
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _descendants(dead: bool = False) -> list[int]:
    """Process ids below this process: the living, or the zombies."""
    parents: dict[int, list[int]] = {}
    zombies: set[int] = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # The command name may hold spaces and parentheses: fields count from the last one.
            state, parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
        except OSError:
            continue
        parents.setdefault(int(parent), []).append(int(folder.name))
        if state in "ZX":
            zombies.add(int(folder.name))
    found: list[int] = []
    todo = [os.getpid()]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return [pid for pid in found if (pid in zombies) == dead]


if __name__ == "__main__":
    code = main(float(sys.argv[1]), sys.argv[2:])
    if code < 0:
        # End the same way, so that the caller sees the signal.
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
        time.sleep(1)
    sys.exit(code)
