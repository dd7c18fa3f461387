"""How a stage's worker runs: its environment, its time, its progress."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qpack.core.errors import QuantizeError
from qpack.runtime.worker import Call, MemoryHints

if TYPE_CHECKING:
    from qpack.pipeline.state import Build


def call(build: Build, environment: str, out: Path, log: Path, hints: MemoryHints | None = None) -> Call:
    """A worker in an environment of the plan, which is created if missing. Raises EnvironmentFailed."""
    return Call(
        build.environment(environment),
        out,
        log,
        build.limit,
        QuantizeError,
        build.console.progress,
        hints or MemoryHints(),
    )
