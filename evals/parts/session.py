"""A running server of a model, and all that asking it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evals.server.vllm_server import Command, Server
from qpack.runtime.worker import Interpreter, Progress


@dataclass(frozen=True)
class Subject:
    """The model to look at: what it is served as, its checkpoint folder, and how its server is started."""

    name: str
    checkpoint: Path
    command: Command
    port: int | None
    max_model_len: int


@dataclass(frozen=True)
class Setting:
    """What is the same for every part. `tools` are environments by name, `windows` the held-out text in tokens; times
    are in seconds, `log` is the server's.
    """

    tools: Mapping[str, Interpreter]
    windows: Path
    log: Path
    start_timeout: float
    timeout: float
    progress: Progress
    tell: Callable[[str], None]


@dataclass(frozen=True)
class Session:
    """A subject whose server is up."""

    subject: Subject
    server: Server
    setting: Setting

    def log(self, what: str) -> Path:
        """The log of a tool that asks the server."""
        return self.server.log.with_suffix(f".{what}.log")
