"""Gates: bounds that a recipe sets on figures of a comparison. Each one passes, fails or is undecided.

This module imports no numpy: the recipe's models embed `Gates`, and light commands load them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qpack.core.records import Comparison, Estimate, Evidence, GateResult, Outcome, Verdict
from qpack.core.speed import MOST_OTHER_WORK

Kind = Literal["max", "min"]
Figures = Iterable[tuple[str, Estimate]]


@dataclass(frozen=True)
class Gate:
    """`read` returns the figures to compare with the bound, each with a label for the gate's name.

    `unit` names the samples that narrow the interval; empty where more samples don't. `silent` returns why the figure
    with a label allows no decision; empty when it does.
    """

    kind: Kind
    meaning: str
    unit: str
    read: Callable[[Comparison, Evidence], Figures]
    silent: Callable[[Comparison, str], str] = lambda *_: ""


def _each_task(comparison: Comparison, _: Evidence) -> Figures:
    return [(task.task, task.drop) for task in comparison.tasks]


def _each_recovery(comparison: Comparison, _: Evidence) -> Figures:
    return [(task.task, task.recovery) for task in comparison.tasks if task.recovery]


def _no_baseline_score(comparison: Comparison, label: str) -> str:
    """Why there is no recovery: the baseline's score is 0."""
    tasks = [task for task in comparison.tasks if label in ("", task.task)]
    if not tasks or any(task.baseline > 0 for task in tasks):
        return ""
    return "The baseline's mean score isn't above 0, so there is nothing to recover. Choose easier tasks."


def _each_throughput(comparison: Comparison, _: Evidence) -> Figures:
    return [(str(speed.concurrency), speed.throughput) for speed in comparison.speed]


def _each_ttft(comparison: Comparison, artifact: Evidence) -> Figures:
    runs = {level.concurrency: len(level.runs) for level in artifact.latency.levels}
    method = "ratio of the medians over runs of each run's p50"  # of releases from before there was an interval
    return [
        (
            str(speed.concurrency),
            speed.ttft
            or Estimate(value=speed.ttft_p50, samples=runs.get(speed.concurrency, 0), interval=None, method=method),
        )
        for speed in comparison.speed
    ]


def _shared_machine(comparison: Comparison, _: str) -> str:
    work = comparison.other_work
    if work is None or not work.disturbs:
        return ""
    return (
        f"{str(work).capitalize()} during the load, more than {MOST_OTHER_WORK:.0%}: the ratio says nothing about the"
        " model. Build again on an idle machine: only speed is measured again."
    )


def _truncated(comparison: Comparison, _: Evidence) -> Figures:
    return [(task.task, task.truncated) for task in comparison.generated]


def _loop_rate(comparison: Comparison, _: Evidence) -> Figures:
    return [(task.task, task.loop_rate) for task in comparison.generated]


def _length_ratio(comparison: Comparison, _: Evidence) -> Figures:
    return [(task.task, task.length_ratio) for task in comparison.generated]


def _failed_requests(comparison: Comparison, artifact: Evidence) -> Figures:
    latency = artifact.latency
    runs = [run for level in latency.levels for run in level.runs]
    runs += [run for level in latency.open_levels for run in level.runs]
    failed = sum(run.failed for run in runs)
    requests = failed + sum(run.completed for run in runs)
    failed += sum(speed.failed for speed in comparison.speed)
    method = f"count over {len(runs)} load runs of the artifact and its interleaved rounds"
    return [("", Estimate(value=float(failed), samples=requests, interval=None, method=method))]


GATES: Mapping[str, Gate] = {
    "recovery": Gate(
        "min",
        "Mean score over tasks, artifact over baseline (0.99 keeps 99 %).",
        "items",
        lambda comparison, _: [("", comparison.recovery)] if comparison.recovery else [],
        _no_baseline_score,
    ),
    "task_recovery": Gate(
        "min",
        "Score per task, artifact over baseline; the worst task decides.",
        "items",
        _each_recovery,
        _no_baseline_score,
    ),
    "accuracy_drop": Gate(
        "max",
        "Mean over tasks of baseline score minus artifact score (0.02 is two points).",
        "items",
        lambda comparison, _: [("", comparison.accuracy_drop)],
    ),
    "task_accuracy_drop": Gate(
        "max",
        "Baseline score minus artifact score per task; the worst task decides.",
        "items",
        _each_task,
    ),
    "truncated": Gate(
        "max",
        "Share of the artifact's generated answers cut at their limit of tokens, per task asked over chat.",
        "items",
        _truncated,
    ),
    "loop_rate": Gate(
        "max",
        "Share of generated answers that end in an endless loop, artifact minus baseline, per task asked over chat.",
        "items",
        _loop_rate,
    ),
    "length_ratio": Gate(
        "max",
        "Mean length of generated answers in tokens, artifact over baseline, per task asked over chat.",
        "items",
        _length_ratio,
    ),
    "perplexity_ratio": Gate(
        "max",
        "Artifact perplexity over baseline perplexity on held-out text.",
        "windows of text",
        lambda comparison, _: [("", comparison.perplexity_ratio)],
    ),
    "kl_divergence": Gate(
        "max",
        "Mean KL divergence of the next-token distribution from the baseline's, in nats, over the whole vocabulary.",
        "windows of text",
        lambda comparison, _: [("", comparison.kl_divergence)],
    ),
    "flip_rate": Gate(
        "max",
        "Share of positions where the most probable next token differs from the baseline's (0.1 is 10 %).",
        "windows of text",
        lambda comparison, _: [("", comparison.flip_rate)],
    ),
    "domain_perplexity_ratio": Gate(
        "max",
        "Perplexity ratio per text domain; the worst domain decides.",
        "windows of text",
        lambda comparison, _: [(domain.domain, domain.perplexity_ratio) for domain in comparison.domains],
    ),
    "domain_kl_divergence": Gate(
        "max",
        "KL divergence per text domain; the worst domain decides.",
        "windows of text",
        lambda comparison, _: [(domain.domain, domain.kl_divergence) for domain in comparison.domains],
    ),
    "domain_flip_rate": Gate(
        "max",
        "Flip rate per text domain; the worst domain decides.",
        "windows of text",
        lambda comparison, _: [(domain.domain, domain.flip_rate) for domain in comparison.domains],
    ),
    "needle_drop": Gate(
        "max",
        "Share of facts found in a text as long as the served context, baseline minus artifact.",
        "prompts",
        lambda comparison, _: [("", comparison.needle.drop)] if comparison.needle else [],
        lambda comparison, _: comparison.needle.no_verdict if comparison.needle else "",
    ),
    "size_ratio": Gate(
        "max",
        "Size of the weights, artifact over baseline.",
        "",
        lambda comparison, _: [("", comparison.size_ratio)],
    ),
    "memory_ratio": Gate(
        "max",
        "Server memory, artifact over baseline, with the same KV cache.",
        "",
        lambda comparison, _: [("", comparison.memory_ratio)],
    ),
    "throughput_ratio": Gate(
        "min",
        "Output tokens per second, artifact over baseline, at each concurrency.",
        "runs",
        _each_throughput,
        _shared_machine,
    ),
    "ttft_ratio": Gate(
        "max",
        "Median time to first token, artifact over baseline, at each concurrency.",
        "runs",
        _each_ttft,
        _shared_machine,
    ),
    "failed_requests": Gate(
        "max",
        "Failed requests in all load runs of the artifact.",
        "",
        _failed_requests,
    ),
}


ACCURACY_GATES = ("recovery", "task_recovery", "accuracy_drop", "task_accuracy_drop")
"""Gates on the tasks' scores: what an interim analysis decides."""
TASK_GATES = frozenset(("task_recovery", "task_accuracy_drop"))
"""Gates with one result per task."""

GENERATION_GATES = ("truncated", "loop_rate", "length_ratio")
"""Gates on answers that are generated over chat, one result per such task."""

DOMAIN_GATES = {f"domain_{gate}": gate for gate in ("perplexity_ratio", "kl_divergence", "flip_rate")}
"""Gates per text domain: the gate on all of the text that each corresponds to."""

SPEED_GATES = frozenset(name for name, gate in GATES.items() if gate.silent is _shared_machine)
"""Gates that are undecided where other work took too much of the machine."""

UNMEASURED_BY_A_TWIN = SPEED_GATES | {"memory_ratio"}
"""Gates that are undecided where the artifact was emulated."""

CANARY = "canary"
CANARY_MEANING = "Failed canary checks. Always on: a recipe neither sets nor disables this gate."


def _field(gate: str, *, ge: float | None = None, gt: float | None = None, le: float | None = None) -> Any:
    # Strict, because YAML's `true` and "0.02" would otherwise become numbers.
    return Field(description=GATES[gate].meaning, ge=ge, gt=gt, le=le, allow_inf_nan=False, strict=True)


class Gates(BaseModel):
    """The `gates` section of a recipe: a ceiling per figure, a floor for recovery and throughput. Unset is no gate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recovery: Annotated[float | None, _field("recovery", ge=0, le=2)] = None
    task_recovery: Annotated[float | None, _field("task_recovery", ge=0, le=2)] = None
    accuracy_drop: Annotated[float | None, _field("accuracy_drop", ge=-1, le=1)] = None
    task_accuracy_drop: Annotated[float | None, _field("task_accuracy_drop", ge=-1, le=1)] = None
    truncated: Annotated[float | None, _field("truncated", ge=0, le=1)] = None
    loop_rate: Annotated[float | None, _field("loop_rate", ge=0, le=1)] = None
    length_ratio: Annotated[float | None, _field("length_ratio", gt=0)] = None
    perplexity_ratio: Annotated[float | None, _field("perplexity_ratio", gt=0)] = None
    kl_divergence: Annotated[float | None, _field("kl_divergence", ge=0)] = None
    flip_rate: Annotated[float | None, _field("flip_rate", ge=0, le=1)] = None
    domain_perplexity_ratio: Annotated[float | None, _field("domain_perplexity_ratio", gt=0)] = None
    domain_kl_divergence: Annotated[float | None, _field("domain_kl_divergence", ge=0)] = None
    domain_flip_rate: Annotated[float | None, _field("domain_flip_rate", ge=0, le=1)] = None
    needle_drop: Annotated[float | None, _field("needle_drop", ge=-1, le=1)] = None
    size_ratio: Annotated[float | None, _field("size_ratio", gt=0)] = None
    memory_ratio: Annotated[float | None, _field("memory_ratio", gt=0)] = None
    throughput_ratio: Annotated[float | None, _field("throughput_ratio", gt=0)] = None
    ttft_ratio: Annotated[float | None, _field("ttft_ratio", gt=0)] = None
    failed_requests: Annotated[int | None, _field("failed_requests", ge=0)] = None

    def bounds(self) -> dict[str, float]:
        """The gates that are set, as `judge` takes them."""
        return {gate: float(bound) for gate in GATES if (bound := getattr(self, gate)) is not None}


def judge(comparison: Comparison, artifact: Evidence, bounds: Mapping[str, float]) -> Verdict:
    """Compare each figure with its bound. Pure; no bound is a pass.

    A gate per task or per concurrency gives one result for each, named `gate[label]`. A gate without a figure
    fails. The verdict is fail when any gate fails, else undecided when any is undecided. Raises ValueError for a
    gate that doesn't exist.
    """
    unknown = sorted(set(bounds) - set(GATES))
    if unknown:
        raise ValueError(f"no such gate: {', '.join(unknown)}")
    results: list[GateResult] = []
    for name, gate in GATES.items():
        if name not in bounds:
            continue
        figures = list(gate.read(comparison, artifact)) or [("", _NOTHING)]
        for label, estimate in figures:
            outcome, why = decide(estimate, gate.kind, bounds[name], gate.unit)
            if silent := gate.silent(comparison, label):
                outcome, why = "undecided", silent
            if artifact.emulated is not None and name in UNMEASURED_BY_A_TWIN:
                outcome, why = "undecided", str(artifact.emulated)
            full = f"{name}[{label}]" if label else name
            results.append(
                GateResult(gate=full, kind=gate.kind, bound=bounds[name], estimate=estimate, outcome=outcome, why=why)
            )
    outcomes = {result.outcome for result in results}
    overall: Outcome = "fail" if "fail" in outcomes else "undecided" if "undecided" in outcomes else "pass"
    return Verdict(outcome=overall, gates=tuple(results))


def decide(estimate: Estimate, kind: Kind, bound: float, unit: str = "samples") -> tuple[Outcome, str]:
    """(outcome, reason in one sentence) of one figure and one bound.

    A ceiling passes when the whole interval is at or below it, fails when the whole interval is above it, and is
    undecided otherwise. A floor works the other way round. Without an interval the value decides. A figure that isn't
    finite, or has no samples, fails.
    """
    value, interval = estimate.value, estimate.interval
    if estimate.samples <= 0:
        return "fail", f"Nothing was measured: {estimate.method}."
    if not math.isfinite(value) or (interval and (math.isnan(interval.low) or math.isnan(interval.high))):
        return "fail", f"The figure is {value} and can't be compared with a bound: {estimate.method}."
    limit = "ceiling" if kind == "max" else "floor"
    good_side, bad_side = ("at or below", "above") if kind == "max" else ("at or above", "below")
    if interval is None:
        meets = value <= bound if kind == "max" else value >= bound
        side = good_side if meets else bad_side
        return ("pass" if meets else "fail"), f"{figure(value)} is {side} the {limit} of {figure(bound)}."
    best, worst = (interval.low, interval.high) if kind == "max" else (interval.high, interval.low)
    span = f"{figure(interval.low)} to {figure(interval.high)}"
    if (worst <= bound) if kind == "max" else (worst >= bound):
        return "pass", f"The whole interval, {span}, is {good_side} the {limit} of {figure(bound)}."
    if (best > bound) if kind == "max" else (best < bound):
        return "fail", f"{figure(value)}; the whole interval, {span}, is {bad_side} the {limit} of {figure(bound)}."
    needed = samples_needed(estimate, bound)
    if needed is None or not unit:
        more = f"more {unit or 'samples'} may not decide it"
    else:
        more = (
            f"about {needed:,} {unit} would decide it if the figure stays at {figure(value)} (now {estimate.samples:,})"
        )
    return "undecided", f"The interval, {span}, includes the {limit} of {figure(bound)}; {more}."


def samples_needed(estimate: Estimate, bound: float) -> int | None:
    """About how many samples move the interval's nearer end to the bound, if its width falls as 1/sqrt(n).

    Two significant digits, rounded up. None without a finite interval, or when more than 1000 times as many samples
    would be needed.
    """
    if estimate.interval is None or estimate.value == bound:
        return None
    reach = (
        estimate.interval.high - estimate.value if estimate.value < bound else estimate.value - estimate.interval.low
    )
    too_wide = abs(reach / (bound - estimate.value))
    if not too_wide <= math.sqrt(1000):
        return None
    needed = max(estimate.samples * too_wide**2, estimate.samples + 1)
    step: int = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return math.ceil(needed / step) * step


def figure(value: float) -> str:
    """At most four significant digits, no trailing zeros, a minus sign: 0.0312, 12.5, 1,200, −0.004."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinity" if value > 0 else "−infinity"
    if value == 0:
        return "0"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{min(digits, 6)}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text.replace("-", "−")


_NOTHING = Estimate(value=math.nan, samples=0, interval=None, method="the evidence has no such figure")
