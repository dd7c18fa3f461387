"""Processes that can't be orphaned: each runs below a supervisor that ends when qpack does.

Every process that qpack starts is started here (`start`, or `ask` for what is over in a moment). It gets the variables
that `qpack.runtime.variables` names for its kind, and its interpreter imports nothing from the current folder.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qpack.runtime.variables import ALWAYS, BASIC, Group, inherited

_SUPERVISOR = Path(__file__).parent / "supervisor.py"
_MARK = "QPACK_PROCESS"
"""What all processes of one command are found by if their supervisor was killed."""


@dataclass
class Process:
    """A running command. Use it as a context manager: leaving the block ends it and all that it started."""

    popen: subprocess.Popen[bytes]
    grace: float
    _lifeline: int = field(repr=False, default=-1)
    _mark: str = field(repr=False, default="")

    @property
    def pid(self) -> int:
        """The supervisor's process id: the root of the tree."""
        return self.popen.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        return self.popen.poll()

    def stop(self) -> int:
        """End the command and everything below it, and return the exit code."""
        self._close()
        try:
            code = self.popen.wait(self.grace + 30)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            code = self.popen.wait()
        if code < 0:  # a signal ended the command, or the supervisor, which then ended nothing
            _end_marked(self._mark)
        return code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the command to end by itself. Raises subprocess.TimeoutExpired."""
        code = self.popen.wait(timeout)
        self._close()
        return code

    def _close(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def __enter__(self) -> Process:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()


def isolated(python: Path | str, variables: Mapping[str, str] | None = None) -> list[str]:
    """How to start an interpreter so that it imports from its own folders alone: not from the current one, not from
    PYTHONPATH, not from the user's.

    `variables` are those that the user set for it. Where PYTHON variables are among them the interpreter has to read
    them; PYTHONSAFEPATH is set for every process, so even then it leaves out the current folder.
    """
    return [str(python), *(() if any(name.startswith("PYTHON") for name in variables or ()) else ("-I",))]


def start(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    inherit: Sequence[Group] = (BASIC,),
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    grace: float = 10.0,
) -> Process:
    """Start `command` below a supervisor, with stdout and stderr appended to `log`.

    `environment` is laid over what the groups of `inherit` let through of qpack's own. Raises OSError when the log
    can't be written.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(16)
    read, write = os.pipe()
    try:
        with log.open("ab") as output:
            popen = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SUPERVISOR), str(grace), *command],
                stdin=read,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**variables(inherit, environment), _MARK: mark},
                cwd=cwd,
                pass_fds=pass_fds,
                start_new_session=True,
            )
    except BaseException:
        os.close(write)
        raise
    finally:
        os.close(read)
    return Process(popen, grace, write, mark)


def _end_marked(mark: str) -> None:
    """SIGKILL every process that was started with this mark in its variables, and those that they start meanwhile."""
    wanted, deadline = f"{_MARK}={mark}".encode(), time.monotonic() + 10
    while time.monotonic() < deadline:
        found = False
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if folder.name.isdigit() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                    os.kill(int(folder.name), signal.SIGKILL)
                    found = True
        if not found:
            return
        time.sleep(0.02)


def ask(command: Sequence[str], *, timeout: float, inherit: Sequence[Group] = (BASIC,)) -> str:
    """What a short command prints. Raises OSError or subprocess.SubprocessError: it isn't there, failed, took longer
    than `timeout` seconds.
    """
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=True,
        env=variables(inherit),
    ).stdout


def variables(inherit: Sequence[Group], environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment of a process of these groups, with `environment` laid over what it inherits."""
    return {**inherited(os.environ, BASIC, *inherit), **ALWAYS, **(environment or {})}
