"""Artifact against baseline, held against the recipe's gates."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from evals.gates.gates import SPEED_GATES
from evals.gates.missed import GATE_FAILED, GATE_UNDECIDED
from evals.gates.missed import missed as missed_gates
from qpack.core.errors import GateFailed, GateUndecided
from qpack.core.records import GateResult, Judged
from qpack.pipeline.slots import Slot
from qpack.pipeline.stage import Stage
from qpack.pipeline.stages.artifact import ARTIFACT
from qpack.pipeline.stages.baseline import BASELINE
from qpack.pipeline.stages.calibrate import CALIBRATED
from qpack.pipeline.stages.hold_out import HELD_OUT
from qpack.pipeline.stages.native import NATIVE

if TYPE_CHECKING:
    from qpack.core.store import Entry
    from qpack.pipeline.planned import Plan
    from qpack.pipeline.stage_keys import Known, Step
    from qpack.pipeline.state import Build

NAME = "judge"
JUDGED: Slot[Entry[Judged]] = Slot(NAME)
CODE = {NAME: (f"{__name__}:make",)}


def steps(known: Known, before: Mapping[str, Step]) -> Iterator[Step]:
    """Comparison and verdict."""
    from qpack.pipeline import stage_keys

    r = known.recipe
    evidence = tuple(
        name for name in before if name.partition(".")[0] in (BASELINE.stage, NATIVE.stage, ARTIFACT.stage)
    )
    calibrated = (CALIBRATED.stage,) if CALIBRATED.stage in before else ()
    inputs = {
        "texts": list(known.held_out),
        "ask": {
            "gates": r.gates.model_dump(mode="json"),
            "seed": r.evaluate.seed,
            "expect": {"scores": dict(r.evaluate.expect), "tolerance": r.evaluate.expect_tolerance},
            "field": (r.calibration.field if r.calibration else None) or "",
        },
        # What overlaps is looked for in the texts themselves.
        **({"calibration": known.calibration} if r.calibration else {}),
    }
    after = (*evidence, HELD_OUT.stage, *calibrated)
    yield stage_keys.step(NAME, before, after, known.code.closure(CODE[NAME]), inputs)


def title(plan: Plan) -> str:
    """The gates."""
    return ", ".join((*plan.recipe.gates.bounds(), "canary"))


def run(build: Build) -> Build:
    """Compare and judge. Raises GateFailed and GateUndecided, unless failed gates are allowed, and EvaluateError."""
    entry = build.once(NAME, Judged, lambda _: make(build))
    found = entry.result.verdict
    if found.outcome != "pass" and not build.allow_failed_gates:
        raise refusal(build.plan, entry.result)
    return build.having(JUDGED, entry)


def stored(build: Build) -> Build:
    """With the stored verdict."""
    return build.having(JUDGED, build.stored(NAME, Judged))


def summary(build: Build) -> str:
    """The outcome, and how many gates passed."""
    verdict = build.require(JUDGED).result.verdict
    passed = sum(gate.outcome == "pass" for gate in verdict.gates)
    odd = f"; {len(verdict.anomalies)} anomalies" if verdict.anomalies else ""
    return f"{verdict.outcome}: {passed} of {len(verdict.gates)} gates passed{odd}"


def make(build: Build) -> Judged:
    """The comparison and its verdict, from what was measured. Raises EvaluateError."""
    # scipy: not loaded unless there is something to judge.
    from evals.comparison import gained
    from evals.comparison.compare import Published, compare
    from evals.comparison.verdicts import verdict
    from qpack.pipeline import evidence

    asked = build.plan.recipe.evaluate
    before, after = evidence.baseline_evidence(build), evidence.artifact_evidence(build)
    comparison = compare(
        evidence.measured(build.require(BASELINE), before),
        evidence.measured(build.require(ARTIFACT), after),
        interleaved=evidence.interleaved(build),
        seed=asked.seed,
        published=Published(asked.expect, asked.expect_tolerance) if asked.expect else None,
    )
    answers = [build.require(stage).accuracy.folder / gained.ANSWERS for stage in (BASELINE, ARTIFACT)]
    gains = gained.find(comparison, before, after, (answers[0], answers[1]), evidence.prompts(build))
    comparison = comparison.model_copy(update={"gained": gains})
    found = verdict(comparison, before, after, build.plan.recipe.gates.bounds())
    beside = None
    if (native := build.get(NATIVE)) is not None:
        as_it_is, own = evidence.measured(native, evidence.native_evidence(build)), build.require(ARTIFACT)
        beside = compare(as_it_is, evidence.measured(own, after), interleaved=None, seed=asked.seed)
    return Judged(comparison=comparison, verdict=found, contamination=evidence.overlaps(build), native=beside)


def refusal(plan: Plan, judged: Judged) -> GateFailed | GateUndecided:
    """The error that a verdict other than pass ends a build with."""
    verdict, work = judged.verdict, judged.comparison.other_work
    missed = missed_gates(verdict, lambda gate: plan.loaded.file.where(("gates", gate)))
    settings = [part for setting in plan.loaded.settings for part in ("--set", setting)]
    report = f"`{shlex.join(['qpack', 'report', str(plan.loaded.file.path), *settings])}` writes a report."
    if verdict.outcome == "fail":
        return GateFailed(
            GATE_FAILED, "the artifact is not good enough; nothing was published", hint=report, problems=missed
        )
    open_gates = {gate.gate.partition("[")[0] for gate in verdict.gates if gate.outcome == "undecided"}
    if work is not None and work.disturbs and open_gates <= SPEED_GATES:
        hint = f"Build again while the machine does nothing else, or leave gates on speed out. {report}"
        return GateUndecided(
            GATE_UNDECIDED, "the machine was too busy to judge speed; nothing was published", hint=hint, problems=missed
        )
    undecided = [gate for gate in verdict.gates if gate.outcome == "undecided"]
    # A gate can be undecided although its interval is within the bound: what was measured carries no signal.
    todo = "Evaluate more samples, or loosen the bound." if any(map(_open, undecided)) else "Another bound won't help."
    hint = f"{todo} {report}"
    return GateUndecided(GATE_UNDECIDED, "the samples don't decide; nothing was published", hint=hint, problems=missed)


def _open(gate: GateResult) -> bool:
    """Whether the bound is inside the gate's interval."""
    held = gate.estimate.interval
    return held is None or held.low <= gate.bound <= held.high


STAGE = Stage(NAME, title, run, summary=summary, steps=steps, stored=stored, code=CODE)
