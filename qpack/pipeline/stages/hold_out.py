"""Held-out text as windows of tokens, set aside before the calibration chooses its rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qpack.core.records import HeldOut
from qpack.pipeline import held_out
from qpack.pipeline.needed import need
from qpack.pipeline.stages.tokens import WORKER
from qpack.pipeline.stages.working import call
from qpack.runtime import worker
from quantize.checkpoint.workers.tokens_job import WindowsAnswer, WindowsJob

if TYPE_CHECKING:
    from qpack.pipeline.state import Build


def make(build: Build, out: Path) -> HeldOut:
    """Write `tokens.jsonl` into `out`. Raises QuantizeError."""
    plan, perplexity = build.plan, build.plan.recipe.evaluate.perplexity

    def windows(texts: Path, field: str, folder: Path) -> tuple[str, ...]:
        job = WindowsJob(
            checkpoint=str(need(build.fetched).folder / "checkpoint"),
            trust_remote_code=plan.recipe.model.trust_remote_code,
            texts=str(texts),
            field=field,
            windows=perplexity.windows,
            window_tokens=perplexity.window_tokens,
        )
        return worker.run(WORKER, job, WindowsAnswer, call(build, "hold_out", "transformers", folder)).row_digests

    return held_out.make(perplexity, plan.held_out, windows, out)
