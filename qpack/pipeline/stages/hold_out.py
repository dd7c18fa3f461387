"""Held-out text as windows of tokens, set aside before the calibration chooses its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qpack.core.records import HeldOut
from qpack.pipeline import held_out
from qpack.pipeline.slots import Slot
from qpack.pipeline.stage import Stage
from qpack.pipeline.stages.fetch import FETCHED
from qpack.pipeline.work import call
from qpack.runtime import worker
from quantize.checkpoint.workers.tokens_job import WindowsAnswer, WindowsJob

if TYPE_CHECKING:
    from qpack.core.store import Entry
    from qpack.pipeline.planned import Plan
    from qpack.pipeline.stage_keys import Known, Step
    from qpack.pipeline.state import Build

NAME = "hold_out"
HELD_OUT: Slot[Entry[HeldOut]] = Slot(NAME)
TOKENS_WORKER = Path(__file__).parents[3] / "quantize" / "checkpoint" / "workers" / "tokens_worker.py"
"""The worker that turns texts into tokens."""

CODE = {NAME: (f"{__name__}:make",)}


def steps(known: Known, before: Mapping[str, Step]) -> Iterator[Step]:
    """The windows."""
    from qpack.pipeline import stage_keys

    ask = known.recipe.evaluate.perplexity
    texts: list[str | None] | str | None = list(known.held_out) if ask.texts else known.held_out[0]
    inputs = {
        **stage_keys.worker(known, "transformers"),
        "own_code": known.recipe.model.trust_remote_code,
        "texts": None if None in known.held_out else texts,
        "ask": held_out.asked(ask),
    }
    yield stage_keys.step(NAME, before, (FETCHED.stage,), known.code.closure(CODE[NAME]), inputs)


def title(plan: Plan) -> str:
    """How many windows of which texts."""
    ask = plan.recipe.evaluate.perplexity
    of = f" of each of {', '.join(text.name for text in ask.texts)}" if ask.texts else ""
    return f"{ask.windows} windows of {ask.window_tokens} tokens{of}"


def run(build: Build) -> Build:
    """Write them. Raises QuantizeError."""
    return build.having(HELD_OUT, build.once(NAME, HeldOut, lambda out: make(build, out)))


def stored(build: Build) -> Build:
    """With the stored windows."""
    return build.having(HELD_OUT, build.stored(NAME, HeldOut))


def make(build: Build, out: Path) -> HeldOut:
    """Write `tokens.jsonl` into `out`. Raises QuantizeError."""
    plan, perplexity = build.plan, build.plan.recipe.evaluate.perplexity

    def windows(texts: Path, field: str, folder: Path) -> tuple[str, ...]:
        job = WindowsJob(
            checkpoint=str(build.require(FETCHED).folder / "checkpoint"),
            trust_remote_code=plan.recipe.model.trust_remote_code,
            texts=str(texts),
            field=field,
            windows=perplexity.windows,
            window_tokens=perplexity.window_tokens,
        )
        return worker.run(
            TOKENS_WORKER, job, WindowsAnswer, call(build, "transformers", folder, build.log(NAME))
        ).row_digests

    return held_out.make(perplexity, plan.held_out, windows, out)


STAGE = Stage(NAME, title, run, steps=steps, stored=stored, code=CODE)
