"""The verdict on a comparison: each gate's outcome, then what all of them together show.

`gates.judge` decides gate by gate. Here the evidence must be complete, a failure must be significant among all gates
(`multiplicity`), and implausibly good figures are reported (`anomalies`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from evals.comparison import anomalies
from evals.comparison.compare import differences, with_recovery
from evals.gates import interim_analysis, multiplicity, sanity
from evals.gates.gates import ACCURACY_GATES, CANARY, GATES, figure, judge
from qpack.core.records import Accuracy, Comparison, Estimate, Evidence, GateResult, Outcome, Proof, Verdict

_SHOWN = 3


def verdict(comparison: Comparison, baseline: Evidence, artifact: Evidence, bounds: Mapping[str, float]) -> Verdict:
    """Compare figures with bounds. Pure; no bound is a pass where the evidence carries signal (`sanity`).

    Incomplete evidence (a sample is missing, has no finite score, or isn't counted in the comparison) fails, and every
    gate with it. A gate that fails alone but not among all gates is undecided. Raises ValueError for a gate that
    doesn't exist.
    """
    comparison = with_recovery(comparison, baseline, artifact)
    alone = judge(comparison, artifact, bounds)
    missing = incomplete(comparison, baseline, artifact)
    if missing:
        why = f"The evidence is incomplete: {'; '.join(missing[:_SHOWN])}."
        gates = tuple(gate.model_copy(update={"outcome": "fail", "why": why}) for gate in alone.gates)
        gates += (_incomplete(len(missing), why),)
        gates += sanity.check(comparison, baseline, artifact) + _promises(artifact.proof)
        return Verdict(outcome=_worst(gates), gates=gates)
    gates = _looked(_with_signal(_among_all(alone.gates), baseline), artifact.accuracy)
    gates += sanity.check(comparison, baseline, artifact) + _outdone(comparison, baseline, artifact)
    gates += _promises(artifact.proof)
    return Verdict(outcome=_worst(gates), gates=gates, anomalies=anomalies.find(comparison, baseline, artifact))


def _incomplete(reasons: int, why: str) -> GateResult:
    """The gate that fails where nothing else is gated."""
    count = Estimate(value=reasons, samples=reasons, interval=None, method="reasons why the evidence is incomplete")
    name = f"{sanity.SANITY}[evidence-incomplete]"
    return GateResult(gate=name, kind="max", bound=0, estimate=count, outcome="fail", why=why)


def _outdone(comparison: Comparison, baseline: Evidence, artifact: Evidence) -> tuple[GateResult, ...]:
    """An artifact that does far better than what it was made from shows a broken baseline."""
    tasks = anomalies.outdone(comparison, baseline, artifact)
    worst = max((task for task in tasks), key=lambda t: t.recovery.value if t.recovery else 0.0, default=None)
    if worst is None or worst.recovery is None:
        return ()
    named = ", ".join(f"{t.task} {figure(t.baseline)} to {figure(t.artifact)}" for t in tasks[:_SHOWN])
    why = (
        f"The artifact does better than its source by far ({named}), which rounding weights doesn't explain: the "
        "baseline was asked or served in a way that costs it answers (chat template, budget of tokens, kernels). The "
        "report has items and both answers."
    )
    name = f"{sanity.SANITY}[baseline-outdone]"
    bound, estimate = anomalies.OUTDONE, worst.recovery
    return (GateResult(gate=name, kind="max", bound=bound, estimate=estimate, outcome="undecided", why=why),)


def incomplete(comparison: Comparison, baseline: Evidence, artifact: Evidence) -> list[str]:
    """Why the evidence is incomplete: samples that are missing, unpaired, or without a score."""
    found = [problem.message for problem in differences(baseline, artifact)]
    for who, accuracy in (("baseline", baseline.accuracy), ("artifact", artifact.accuracy)):
        found += _unscored(who, accuracy)
    counted = {task.task: task.drop.samples for task in comparison.tasks}
    for task in artifact.accuracy.tasks:
        if counted.get(task.task) != len(task.samples):
            found.append(
                f"{task.task}: {len(task.samples):,} samples, but the comparison counts {counted.get(task.task, 0):,}"
            )
    return found


def _promises(proof: Proof | None) -> tuple[GateResult, ...]:
    """The canary as a gate that is always on: no check may fail. Empty without a canary."""
    if proof is None:
        return ()
    by = {outcome: [c for c in proof.checks if c.outcome == outcome] for outcome in ("pass", "fail", "skip")}
    made, failed = len(by["pass"]) + len(by["fail"]), by["fail"]
    skipped = f"; skipped: {', '.join(f'{c.name} ({c.why})' for c in by['skip'])}" if by["skip"] else ""
    why = "; ".join(f"{c.name}: {c.claim} Seen: {c.why}" for c in failed) or f"{made} checks passed{skipped}."
    estimate = Estimate(value=len(failed), samples=made, interval=None, method="failed canary checks")
    outcome: Outcome = "pass" if made and not failed else "fail"
    return (GateResult(gate=CANARY, kind="max", bound=0, estimate=estimate, outcome=outcome, why=why),)


def _unscored(who: str, accuracy: Accuracy) -> list[str]:
    found = []
    for task in accuracy.tasks:
        bad = [sample.id for sample in task.samples if not math.isfinite(sample.score)]
        if bad:
            found.append(f"{task.task}: {len(bad):,} samples of the {who} have no score (first: {bad[0]})")
    return found


def _looked(results: Sequence[GateResult], accuracy: Accuracy) -> tuple[GateResult, ...]:
    """Accuracy gates with the look at which they were decided."""
    at = interim_analysis.sentence(accuracy)
    if not at:
        return tuple(results)
    return tuple(
        r.model_copy(update={"why": f"{r.why} Stopped at {at}."}) if _name(r) in ACCURACY_GATES else r for r in results
    )


def _with_signal(results: Sequence[GateResult], baseline: Evidence) -> tuple[GateResult, ...]:
    """Accuracy gates that would pass although the baseline only guesses are undecided."""
    why = sanity.accuracy_silent(baseline)
    return tuple(
        r.model_copy(update={"outcome": "undecided", "why": why})
        if why and r.outcome == "pass" and _name(r) in ACCURACY_GATES
        else r
        for r in results
    )


def _among_all(results: Sequence[GateResult]) -> tuple[GateResult, ...]:
    """Each result with its Holm-adjusted p-value; a failure that isn't significant among all gates is undecided.

    Gates without an interval have no sampling noise and aren't tests.
    """
    raw = [
        multiplicity.p_beyond(r.estimate, r.kind, r.bound, logarithmic=_name(r) in multiplicity.LOGARITHMIC)
        for r in results
    ]
    family = [p for p in raw if p is not None]
    adjusted = iter(multiplicity.holm(family))
    judged = []
    for result, p in zip(results, raw, strict=True):
        if p is None:
            judged.append(result)
            continue
        holm = next(adjusted)
        update: dict[str, object] = {"holm_p": holm}
        level = _level(result.estimate)
        if result.outcome == "fail" and holm > level:
            update |= {"outcome": "undecided", "why": _not_sure(result, p, holm, level, len(family))}
        judged.append(result.model_copy(update=update))
    return tuple(judged)


def _not_sure(result: GateResult, p: float, holm: float, level: float, tests: int) -> str:
    unit = GATES[_name(result)].unit or "samples"
    needed = multiplicity.samples_to_fail(result.estimate, p, tests)
    more = f"about {needed:,} {unit}" if needed else f"more {unit}"
    side = "above" if result.kind == "max" else "below"
    return (
        f"{figure(result.estimate.value)} is {side} {figure(result.bound)}, but with {tests} gates one may fail by "
        f"chance: Holm-adjusted p = {figure(holm)}, above {figure(level)}; {more} would decide it if the figure stays "
        f"(now {result.estimate.samples:,})."
    )


def _level(estimate: Estimate) -> float:
    return (1 - estimate.interval.confidence) / 2 if estimate.interval else 0.0


def _name(result: GateResult) -> str:
    return result.gate.partition("[")[0]


def _worst(results: Sequence[GateResult]) -> Outcome:
    outcomes = {result.outcome for result in results}
    return "fail" if "fail" in outcomes else "undecided" if "undecided" in outcomes else "pass"
