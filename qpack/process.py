"""Processes that can't be orphaned: each runs below a supervisor that ends when qpack does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_SUPERVISOR = Path(__file__).parent / "supervisor.py"
# What an engine must not inherit: it would find qpack's own packages, or another virtual environment.
_NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


@dataclass
class Process:
    """A running command. Use it as a context manager: leaving the block ends it and all that it started."""

    popen: subprocess.Popen[bytes]
    grace: float
    _lifeline: int = field(repr=False, default=-1)

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
            return self.popen.wait(self.grace + 30)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()

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


def start(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    grace: float = 10.0,
) -> Process:
    """Start `command` below a supervisor, with stdout and stderr appended to `log`.

    `environment` is laid over qpack's own. Raises OSError when the log can't be written.
    """
    variables = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    variables.update(environment or {})
    log.parent.mkdir(parents=True, exist_ok=True)
    read, write = os.pipe()
    try:
        with log.open("ab") as output:
            popen = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SUPERVISOR), str(grace), *command],
                stdin=read,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
                cwd=cwd,
                pass_fds=pass_fds,
                start_new_session=True,
            )
    except BaseException:
        os.close(write)
        raise
    finally:
        os.close(read)
    return Process(popen, grace, write)
