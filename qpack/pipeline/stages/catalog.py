"""Every stage, in order."""

from __future__ import annotations

from qpack.core.errors import invalid_option
from qpack.pipeline.stage import Stage
from qpack.pipeline.stages import (
    artifact,
    baseline,
    calibrate,
    fetch,
    hold_out,
    judge,
    native,
    package,
    publish,
    quantize,
)

STAGES: tuple[Stage, ...] = (
    fetch.STAGE,
    hold_out.STAGE,
    calibrate.STAGE,
    quantize.STAGE,
    baseline.STAGE,
    native.STAGE,
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
    raise invalid_option("--until", f"there is no stage {name!r}", hint)


def until(stage: Stage) -> tuple[Stage, ...]:
    """The stages up to and with `stage`."""
    return STAGES[: STAGES.index(stage) + 1]
