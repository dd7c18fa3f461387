"""A worker for a stage before evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qpack.core.errors import QuantizeError
from qpack.runtime.worker import Call

if TYPE_CHECKING:
    from qpack.pipeline.state import Build


def call(build: Build, stage: str, environment: str, out: Path) -> Call:
    """A stage's worker in an environment of the plan, which is made first. Raises EnvironmentFailed."""
    return Call(
        build.environment(environment),
        out,
        build.log(stage),
        build.limit,
        QuantizeError,
        build.console.progress,
        build.relief(stage),
    )
