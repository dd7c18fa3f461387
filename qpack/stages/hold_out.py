"""Held-out text as windows of tokens, set aside before the calibration chooses its rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpack import held_out
from qpack.needed import need
from qpack.results import HeldOut
from qpack.stages.tokens import WORKER
from qpack.stages.working import reading, work

if TYPE_CHECKING:
    from qpack.work import Build


def make(build: Build, out: Path) -> HeldOut:
    """Write `tokens.jsonl` into `out`. Raises QuantizeError."""
    plan, checkpoint = build.plan, need(build.fetched).folder / "checkpoint"

    def windows(job: Mapping[str, Any], folder: Path) -> list[str]:
        read = {**reading(build, checkpoint), **job, "kind": "windows"}
        return list(work(build, "hold_out", "transformers", WORKER, read, folder)["row_digests"])

    return held_out.make(plan.recipe.evaluate.perplexity, plan.held_out, windows, out)
