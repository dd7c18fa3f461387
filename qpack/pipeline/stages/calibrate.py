"""Calibration texts as rows of tokens, with a record of every text that was used, cut or left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qpack.core import hashing
from qpack.core.records import Calibrated
from qpack.pipeline.slots import Slot
from qpack.pipeline.stage import Stage
from qpack.pipeline.stages.fetch import FETCHED
from qpack.pipeline.stages.hold_out import HELD_OUT, TOKENS_WORKER
from qpack.pipeline.work import call
from qpack.runtime import worker
from quantize.checkpoint.workers.tokens_job import RowsAnswer, RowsJob

if TYPE_CHECKING:
    from qpack.core.store import Entry
    from qpack.pipeline.planned import Plan
    from qpack.pipeline.stage_keys import Known, Step
    from qpack.pipeline.state import Build
    from qpack.recipe.models import Calibration

NAME = "calibrate"
CALIBRATED: Slot[Entry[Calibrated]] = Slot(NAME)
CODE = {NAME: (f"{__name__}:make",)}


def steps(known: Known, before: Mapping[str, Step]) -> Iterator[Step]:
    """The rows, if the method needs any."""
    from qpack.pipeline import stage_keys

    if (ask := known.recipe.calibration) is None:
        return
    inputs = {
        **stage_keys.worker(known, "transformers"),
        "own_code": known.recipe.model.trust_remote_code,
        "texts": known.calibration,
        "ask": ask.model_dump(exclude={"source"}),
    }
    after = (FETCHED.stage, HELD_OUT.stage)
    yield stage_keys.step(NAME, before, after, known.code.closure(CODE[NAME]), inputs)


def title(plan: Plan) -> str:
    """How many rows."""
    ask = plan.recipe.calibration
    return f"{ask.samples} rows of up to {ask.max_length} tokens" if ask else "not needed"


def run(build: Build) -> Build:
    """Write them. Raises QuantizeError."""
    if (ask := build.plan.recipe.calibration) is None:
        return build
    return build.having(CALIBRATED, build.once(NAME, Calibrated, lambda out: make(build, ask, out)))


def stored(build: Build) -> Build:
    """With the stored rows."""
    return build.having(CALIBRATED, build.stored(NAME, Calibrated))


def summary(build: Build) -> str:
    """How many rows and tokens."""
    if (entry := build.get(CALIBRATED)) is None:
        return ""
    return f"{entry.result.rows} rows, {entry.result.tokens} tokens, {entry.result.cut} cut"


def make(build: Build, ask: Calibration, out: Path) -> Calibrated:
    """Write `tokens.jsonl` into `out`. Raises QuantizeError."""
    job = RowsJob(
        checkpoint=str(build.require(FETCHED).folder / "checkpoint"),
        trust_remote_code=build.plan.recipe.model.trust_remote_code,
        texts=str(build.plan.calibration),
        held_out=build.require(HELD_OUT).result.row_digests,
        **ask.model_dump(exclude={"source"}),
    )
    answer = worker.run(TOKENS_WORKER, job, RowsAnswer, call(build, "transformers", out, build.log(NAME)))
    return Calibrated(
        digest=hashing.sha256(out / "tokens.jsonl"),
        rows=len(answer.lengths),
        max_length=ask.max_length,
        seed=ask.seed,
        chat_template=ask.chat_template,
        padded_tokens=0,
        **dataclasses.asdict(answer),
    )


STAGE = Stage(NAME, title, run, summary=summary, steps=steps, stored=stored, code=CODE)
