"""Every stage, in order."""

from __future__ import annotations

from qpack.core.errors import RecipeError
from qpack.core.problems import INVALID_OPTION, Location, Problem
from qpack.pipeline.stage import Stage
from qpack.pipeline.stages import artifact, baseline, calibrate, fetch, hold_out, judge, package, publish, quantize

STAGES: tuple[Stage, ...] = (
    fetch.STAGE,
    hold_out.STAGE,
    calibrate.STAGE,
    quantize.STAGE,
    baseline.STAGE,
    artifact.STAGE,
    judge.STAGE,
    package.STAGE,
    publish.STAGE,
)


def named(name: str) -> tuple[Stage, ...]:
    """The stages up to and with the one of this name. Raises RecipeError for another name."""
    for stage in STAGES:
        if stage.name == name:
            return until(stage)
    hint = f"One of: {', '.join(stage.name for stage in STAGES)}."
    problem = Problem(INVALID_OPTION, f"there is no stage {name!r}", Location(option="--until"), hint)
    raise RecipeError.of([problem])


def until(stage: Stage) -> tuple[Stage, ...]:
    """The stages up to and with `stage`."""
    return STAGES[: STAGES.index(stage) + 1]
