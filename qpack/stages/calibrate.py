"""Calibration texts as rows of tokens, with a record of every text that was used, cut or left out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qpack import files
from qpack.needed import need
from qpack.results import Calibrated
from qpack.stages.tokens import WORKER
from qpack.stages.working import reading, work

if TYPE_CHECKING:
    from qpack.sections import Calibration
    from qpack.work import Build


def make(build: Build, ask: Calibration, out: Path) -> Calibrated:
    """Write `tokens.jsonl` into `out`. Raises QuantizeError."""
    job = {
        **reading(build, need(build.fetched).folder / "checkpoint"),
        **ask.model_dump(exclude={"source"}),
        "kind": "rows",
        "texts": str(build.plan.calibration),
        "held_out": list(need(build.held_out).result.row_digests),
    }
    answer = work(build, "calibrate", "transformers", WORKER, job, out)
    return Calibrated(
        digest=files.sha256(out / "tokens.jsonl"),
        rows=len(answer["lengths"]),
        max_length=ask.max_length,
        seed=ask.seed,
        chat_template=ask.chat_template,
        padded_tokens=0,
        **answer,
    )
