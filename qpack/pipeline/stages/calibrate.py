"""Calibration texts as rows of tokens, with a record of every text that was used, cut or left out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from qpack.core import hashing
from qpack.core.records import Calibrated
from qpack.pipeline.needed import need
from qpack.pipeline.stages.tokens import WORKER
from qpack.pipeline.stages.working import call
from qpack.runtime import worker
from quantize.checkpoint.workers.tokens_job import RowsAnswer, RowsJob

if TYPE_CHECKING:
    from qpack.pipeline.state import Build
    from qpack.recipe.models import Calibration


def make(build: Build, ask: Calibration, out: Path) -> Calibrated:
    """Write `tokens.jsonl` into `out`. Raises QuantizeError."""
    job = RowsJob(
        checkpoint=str(need(build.fetched).folder / "checkpoint"),
        trust_remote_code=build.plan.recipe.model.trust_remote_code,
        texts=str(build.plan.calibration),
        held_out=need(build.held_out).result.row_digests,
        **ask.model_dump(exclude={"source"}),
    )
    answer = worker.run(WORKER, job, RowsAnswer, call(build, "calibrate", "transformers", out))
    return Calibrated(
        digest=hashing.sha256(out / "tokens.jsonl"),
        rows=len(answer.lengths),
        max_length=ask.max_length,
        seed=ask.seed,
        chat_template=ask.chat_template,
        padded_tokens=0,
        **dataclasses.asdict(answer),
    )
