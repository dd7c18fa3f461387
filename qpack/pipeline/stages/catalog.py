"""Every stage, in order."""

from __future__ import annotations

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


def until(stage: Stage) -> tuple[Stage, ...]:
    """The stages up to and with `stage`."""
    return STAGES[: STAGES.index(stage) + 1]
