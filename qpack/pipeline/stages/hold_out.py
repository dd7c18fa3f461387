"""Held-out text as windows of tokens, set aside before the calibration chooses its rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpack.core.records import HeldOut
from qpack.pipeline import held_out
from qpack.pipeline.needed import need
from qpack.pipeline.stages.tokens import WORKER
from qpack.pipeline.stages.working import reading, work

if TYPE_CHECKING:
    from qpack.pipeline.state import Build


def make(build: Build, out: Path) -> HeldOut:
    """Write `tokens.jsonl` into `out`. Raises QuantizeError."""
    plan, checkpoint = build.plan, need(build.fetched).folder / "checkpoint"

    def windows(job: Mapping[str, Any], folder: Path) -> list[str]:
        read = {**reading(build, checkpoint), **job, "kind": "windows"}
        return list(work(build, "hold_out", "transformers", WORKER, read, folder)["row_digests"])

    return held_out.make(plan.recipe.evaluate.perplexity, plan.held_out, windows, out)
