"""The evidence of a quantized source as it is stored: a second baseline, beside the unpacked one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qpack.core.records import Fetched
from qpack.pipeline.slots import Slot
from qpack.pipeline.stage import Stage
from qpack.pipeline.stages import baseline, fetch
from qpack.pipeline.stages.hold_out import HELD_OUT

if TYPE_CHECKING:
    from evals.parts.collect_evidence import CollectedEvidence
    from qpack.core.store import Entry
    from qpack.pipeline.planned import Plan
    from qpack.pipeline.stage_keys import Known, Step
    from qpack.pipeline.state import Build

NAME = "native"
NATIVE: Slot[CollectedEvidence] = Slot(NAME)
PACKED: Slot[Entry[Fetched]] = Slot("packed")
CODE = {PACKED.stage: ("qpack.pipeline.stages.fetch:link",)}


def steps(known: Known, before: Mapping[str, Step]) -> Iterator[Step]:
    """Its files, and the parts of its evidence."""
    from qpack.pipeline import evidence_keys, stage_keys

    if known.packed is None:
        return
    stored = replace(known, source=known.packed, emulation={})
    inputs = {"source": stored.source.resolved, "content": stored.source.content}
    files = stage_keys.step(PACKED.stage, before, (), known.code.closure(CODE[PACKED.stage]), inputs)
    yield files
    side = evidence_keys.Side(NAME, PACKED.stage, HELD_OUT.stage, quantized=False)
    found = {**before, PACKED.stage: files}
    yield evidence_keys.performance(stored, side, found)
    yield from evidence_keys.shared(stored, side, found, stop=None)


def wanted(plan: Plan) -> bool:
    """Whether the recipe asks for it."""
    return plan.packed is not None


def title(plan: Plan) -> str:
    """What is measured."""
    return f"the source as it is stored ({plan.source.unpack}), measured the same way"


def run(build: Build) -> Build:
    """Measure what the store doesn't have. Raises QuantizeError and EvaluateError."""
    if build.plan.packed is None:
        return build
    build = build.having(PACKED, build.once(PACKED.stage, Fetched, lambda out: _link(build, out)))
    if not build.missing(NAME):
        return build.having(NATIVE, build.observed(NAME))
    from qpack.pipeline import measuring

    files = build.require(PACKED)
    stored = replace(build, plan=build.plan.native())
    model = measuring.Model(NAME, files.result.digest, files.folder / "checkpoint")
    served = measuring.served(stored, model, None, quantized=False)
    return build.having(NATIVE, measuring.collect(stored, measuring.Measured(NAME, served)))


def _link(build: Build, out: Path) -> Fetched:
    source = build.plan.native().source
    return fetch.link(source, source.license, out)


def stored(build: Build) -> Build:
    """With the stored evidence."""
    if build.plan.packed is None:
        return build
    return build.having(PACKED, build.stored(PACKED.stage, Fetched)).having(NATIVE, build.observed(NAME))


def summary(build: Build) -> str:
    """Means of the tasks."""
    return baseline.means(build.require(NATIVE))


STAGE = Stage(NAME, title, run, summary=summary, steps=steps, stored=stored, code=CODE, wanted=wanted)
