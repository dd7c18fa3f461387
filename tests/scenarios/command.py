"""The command line as a person meets it: a process, judged by its exit code, its words and what it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from tests.patience import PATIENCE

T = TypeVar("T")
_NOT_INHERITED = ("QPACK_", "HF_", "GITHUB_", "UV_")
ROOT = Path(__file__).parents[2]
DEMO = ROOT / "recipes" / "smollm2-135m-gptq.yaml"


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Qpack:
    """qpack with a home of its own. `mark` is in the environment of every process that it starts, however deep."""

    home: Path
    cwd: Path
    variables: Mapping[str, str]
    python: Path = Path(sys.executable)

    @property
    def mark(self) -> str:
        """What its processes are found by."""
        return str(self.cwd)

    def environment(self, **more: str) -> dict[str, str]:
        """The caller's environment without its settings for qpack and the hub, and with ours."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        ours = {"QPACK_HOME": str(self.home), "HF_HOME": str(self.cwd / "hf"), "QPACK_TEST_MARK": self.mark}
        return {**kept, **ours, **self.variables, **more}

    def __call__(self, *arguments: str | Path, timeout: float = PATIENCE, **variables: str) -> Finished:
        """Run a command to its end."""
        done = subprocess.run(
            [self.python, "-m", "qpack.cli.start", *map(str, arguments)],
            env=self.environment(**variables),
            cwd=self.cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Finished(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def started(self, *arguments: str | Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
        """Start a command and leave it running for the block."""
        running = subprocess.Popen(
            [self.python, "-m", "qpack.cli.start", *map(str, arguments)],
            env=self.environment(**variables),
            cwd=self.cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield running
        finally:
            running.kill()
            running.wait()
            for pipe in (running.stdout, running.stderr):
                if pipe is not None:
                    pipe.close()
            for left in self.processes():
                left.kill()

    def processes(self, script: str = "") -> list[psutil.Process]:
        """Its living processes: also those that left session, group and parent. `script` narrows them by command line.

        The supervisor has the script on its command line too; it isn't listed when a script is named.
        """
        found = []
        for candidate in psutil.process_iter():
            try:
                line = " ".join(candidate.cmdline())
                ours = candidate.environ().get("QPACK_TEST_MARK") == self.mark
                if not ours or candidate.status() == psutil.STATUS_ZOMBIE or script not in line:
                    continue
                if not script or "supervisor.py" not in line:
                    found.append(candidate)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def worker(self, script: str) -> psutil.Process:
        """The worker that runs this script, once there is one."""
        return wait_for(lambda: self.processes(script), f"no {script} was started")[0]

    def ended(self) -> bool:
        """Whether all that it started has gone, or goes within the next seconds."""
        deadline = time.monotonic() + PATIENCE
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        return not self.processes()

    def half_done(self) -> list[Path]:
        """What a killed or failed command must not leave: drafts, and environments without their state file."""
        drafts = [*(self.home / "store" / "drafts").glob("*"), *self.home.glob("registry/**/*.part")]
        made = [path for path in (self.home / "envs").glob("*-*-*") if not (path / "qpack.json").exists()]
        return [*drafts, *made]

    def finished(self) -> list[str]:
        """The stages that have a result in the store."""
        return sorted(path.parts[-3] for path in (self.home / "store").glob("*/*/result.json"))


def wait_for(what: Callable[[], T], otherwise: str, within: float = PATIENCE) -> T:
    """The first true answer."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if answer := what():
            return answer
        time.sleep(0.05)
    raise AssertionError(otherwise)
