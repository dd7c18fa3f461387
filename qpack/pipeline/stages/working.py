"""A worker for a stage before evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpack.core.errors import QuantizeError
from qpack.runtime import worker

if TYPE_CHECKING:
    from qpack.pipeline.state import Build


def work(build: Build, stage: str, environment: str, script: Path, job: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Run `script` in an environment of the plan. Raises what `worker.run` raises."""
    call = worker.Call(
        build.environment(environment),
        out,
        build.log(stage),
        build.limit,
        QuantizeError,
        build.console.progress,
        build.relief(stage),
    )
    return worker.run(script, job, dict, call)


def reading(build: Build, checkpoint: Path) -> dict[str, Any]:
    """What every worker is told of the source model."""
    return {"checkpoint": str(checkpoint), "trust_remote_code": build.plan.recipe.model.trust_remote_code}
