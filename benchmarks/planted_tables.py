"""The planted defect study without its servers: what the gates say of per-sample results, drawn at many counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from evals.gates.gates import GATES, Kind, decide, figure
from evals.gates.group_sequential import follow
from evals.gates.multiplicity import LOGARITHMIC, holm, p_beyond
from evals.measure import divergence
from evals.measure.divergence import TopK
from evals.report.markdown import table
from evals.stats import estimates
from qpack.core.records import Accuracy, Estimate, Language

SHARES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
SURE = 0.95
SLACK = {"accuracy_drop": 0.03, "perplexity_ratio": 1.05, "kl_divergence": 1.25, "flip_rate": 1.1}
"""What a gate allows beyond the undamaged artifact's own figure: added to the drop, a factor of the others. Set before
anything was measured.
"""


@dataclass(frozen=True)
class Answers:
    """What one server said of one model. `accuracy` is None where no tasks were asked."""

    accuracy: Accuracy | None
    language: Language
    top: TopK


@dataclass(frozen=True)
class Paired:
    """Baseline and one subject, item by item and window by window, ready to be drawn from."""

    tasks: tuple[tuple[estimates.Floats, estimates.Floats], ...]
    nll: tuple[estimates.Floats, estimates.Floats]
    tokens: estimates.Floats
    kl: estimates.Floats
    flips: estimates.Floats
    window: estimates.Floats

    @classmethod
    def of(cls, baseline: Answers, subject: Answers) -> Paired:
        """All that there is."""
        b, a = baseline.top, subject.top
        asked = (baseline.accuracy, subject.accuracy)
        return cls(
            tuple(
                (np.array([s.score for s in x.samples]), np.array([s.score for s in y.samples]))
                for x, y in (zip(asked[0].tasks, asked[1].tasks, strict=True) if asked[0] and asked[1] else ())
            ),
            tuple(np.array([w.nll for w in e.language.windows]) for e in (baseline, subject)),  # type: ignore[arg-type]
            np.array([float(w.tokens) for w in baseline.language.windows]),
            divergence.kl_by_position(b, a),
            divergence.flips_by_position(b, a).astype(np.float64),
            b.window.astype(np.float64),
        )

    def draw(self, share: float, rng: np.random.Generator) -> Paired:
        """So many items of each task and windows, drawn with replacement: what was measured stands for the population,
        so that draws differ at every count.
        """

        def some(size: int) -> np.ndarray:
            return rng.integers(size, size=max(2, math.ceil(share * size)))

        items = [some(len(b)) for b, _ in self.tasks]
        windows = some(len(self.tokens))
        places = [np.flatnonzero(self.window == window) for window in windows]
        at = np.concatenate(places)
        return Paired(
            tuple((b[i], a[i]) for (b, a), i in zip(self.tasks, items, strict=True)),
            (self.nll[0][windows], self.nll[1][windows]),
            self.tokens[windows],
            self.kl[at],
            self.flips[at],
            np.repeat(np.arange(len(windows), dtype=np.float64), [len(place) for place in places]),
        )

    def figures(self, seed: int) -> dict[str, Estimate]:
        """The figures that gates are held against."""
        window = self.window.astype(np.int64)
        drop = {"accuracy_drop": estimates.paired_drop(self.tasks, seed=seed)} if self.tasks else {}
        return drop | {
            "perplexity_ratio": estimates.perplexity_ratio(*self.nll, self.tokens, seed=seed),
            "kl_divergence": estimates.mean_by_window(self.kl, window, seed=seed),
            "flip_rate": estimates.rate_by_window(self.flips > 0, window, seed=seed),
        }


def bounds_of(good: Paired) -> dict[str, float]:
    """Gates for a release that its team is content with: the undamaged artifact's figures and `SLACK`."""
    found = good.figures(0)
    return {g: e.value + SLACK[g] if g == "accuracy_drop" else e.value * SLACK[g] for g, e in found.items()}


def tables(
    baseline: Answers,
    subjects: Mapping[str, Answers],
    controls: Mapping[str, Answers],
    told: Mapping[str, str],
    draws: int,
) -> Iterator[str]:
    """What was caught, by which gate, at how many samples; `told` is what is said before any gate (`subjects` holds
    "good", the undamaged artifact).
    """
    pairs = {name: Paired.of(baseline, answers) for name, answers in subjects.items()}
    others = {name: Paired.of(baseline, answers) for name, answers in controls.items()}
    bounds = bounds_of(pairs["good"])
    items, windows = sum(len(b) for b, _ in pairs["good"].tasks), len(pairs["good"].tokens)
    tokens = int(sum(pairs["good"].tokens))
    asked = "the same" if all(pair.tasks for pair in others.values()) else "the windows"
    yield f"Each subject: {items:,} items, {windows} windows of text, {tokens:,} tokens. Each control: {asked}."
    yield "Gates: " + ", ".join(f"{g} <= {figure(b)}" for g, b in bounds.items()) + ".\n"
    yield from table(("Subject", *bounds, "Before any gate"), list(_whole(pairs, bounds, told)))
    rates = {(name, share): _rates([pair], share, bounds, draws) for name, pair in pairs.items() for share in SHARES}
    counts = {"accuracy_drop": items}
    yield f"\nFewest samples (items, else windows) from which on a gate fails in {100 * SURE:.0f} % of {draws} draws:\n"
    rows = [
        (name, *(_fewest({s: rates[name, s][gate] for s in SHARES}, counts.get(gate, windows)) for gate in bounds))
        for name in pairs
    ]
    yield from table(("Subject", *bounds), rows)
    yield f"\nShare of {draws} draws in which a gate fails (Holm over the gates), by samples drawn:\n"
    rows = [
        (name, f"{math.ceil(items * share):,}", f"{math.ceil(windows * share):,}", *_percent(rates[name, share]))
        for name in pairs
        for share in SHARES
    ]
    yield from table(("Subject", "Items", "Windows", *bounds, "any fails", "all pass"), rows)
    if others:
        yield from _controls(list(others.values()), bounds, windows, draws)
    if not items:
        return
    yield "\nLooks at a quarter, half, three quarters and all of the items (accuracy_drop alone):\n"
    yield from table(
        ("Subject", "Fail", "Pass", "Undecided", "Items used, mean"), list(_followed(pairs, bounds, draws))
    )


def _whole(
    pairs: Mapping[str, Paired], bounds: Mapping[str, float], told: Mapping[str, str]
) -> Iterator[tuple[str, ...]]:
    for name in dict.fromkeys((*pairs, *told)):
        if name not in pairs:
            yield (name, *("" for _ in bounds), told[name])
            continue
        figures = pairs[name].figures(0)
        outcomes = judged(figures, bounds)
        yield (name, *(f"{_span(figures[g])} {outcomes[g]}" for g in bounds), told.get(name, "nothing"))


def _controls(pairs: list[Paired], bounds: Mapping[str, float], windows: int, draws: int) -> Iterator[str]:
    """The false alarms: each control as it was measured, then drawn at other counts."""
    if not all(pair.tasks for pair in pairs):
        bounds = {gate: bound for gate, bound in bounds.items() if gate != "accuracy_drop"}
    yield f"\n{len(pairs)} controls as they were measured, one verdict each:\n"
    figures = [pair.figures(0) for pair in pairs]
    outcomes = [judged(found, bounds) for found in figures]
    rows = []
    for gate, bound in bounds.items():
        values = [found[gate].value for found in figures]
        counts = [sum(o[gate] == answer for o in outcomes) for answer in ("pass", "undecided", "fail")]
        rows.append((gate, figure(bound), f"{figure(min(values))} to {figure(max(values))}", *map(str, counts)))
    wrong = sum("fail" in o.values() for o in outcomes)
    rows.append(("any", "", "", "", "", str(wrong)))
    yield from table(("Gate", "Bound", "Figures", "Pass", "Undecided", "Fail"), rows)
    low, high = estimates.clopper_pearson(wrong, len(pairs), 0.05)
    yield f"\nFalse alarms: {wrong} of {len(pairs)} (90 % interval {100 * low:.0f} % to {100 * high:.0f} %). "
    each = max(1, draws // len(pairs))
    yield f"By windows (and items in proportion) drawn, {each * len(pairs)} draws over all controls:\n"
    rows = [(f"{math.ceil(windows * share):,}", *_percent(_rates(pairs, share, bounds, each))) for share in SHARES]
    yield from table(("Windows", *bounds, "any fails", "all pass"), rows)


def _percent(rates: Mapping[str, float]) -> list[str]:
    return [f"{100 * rate:.0f} %" for rate in rates.values()]


def _fewest(rates: Mapping[float, float], measured: int) -> str:
    """The count from which on a gate fails nearly always; a dash where none that was drawn is enough."""
    enough = [share for share in rates if all(rates[more] >= SURE for more in rates if more >= share)]
    return f"{math.ceil(measured * min(enough)):,}" if enough else "-"


def _rates(pairs: list[Paired], share: float, bounds: Mapping[str, float], draws: int) -> dict[str, float]:
    """Over `draws` draws from each of `pairs`: how often each gate fails, any fails, all pass."""
    failed = dict.fromkeys((*bounds, "any", "all pass"), 0)
    for number, pair in enumerate(pairs):
        for seed in range(draws):
            rng = np.random.default_rng((number, seed))
            outcomes = judged(pair.draw(share, rng).figures(seed), bounds)
            for gate, outcome in outcomes.items():
                failed[gate] += outcome == "fail"
            failed["any"] += "fail" in outcomes.values()
            failed["all pass"] += set(outcomes.values()) == {"pass"}
    return {what: count / (draws * len(pairs)) for what, count in failed.items()}


def judged(figures: Mapping[str, Estimate], bounds: Mapping[str, float]) -> dict[str, str]:
    """Each gate's answer, a failure only if it holds among all of them: the rule of `evals.comparison.verdicts`."""
    kinds: dict[str, Kind] = {gate: GATES[gate].kind for gate in bounds}
    raw = {g: p_beyond(figures[g], kinds[g], bounds[g], logarithmic=g in LOGARITHMIC) for g in bounds}
    adjusted = iter(holm([p for p in raw.values() if p is not None]))
    outcomes: dict[str, str] = {}
    for gate, p in raw.items():
        outcome = decide(figures[gate], kinds[gate], bounds[gate])[0]
        sure = p is None or next(adjusted) <= (1 - estimates.CONFIDENCE) / 2
        outcomes[gate] = outcome if outcome != "fail" or sure else "undecided"
    return outcomes


def _followed(pairs: Mapping[str, Paired], bounds: Mapping[str, float], draws: int) -> Iterator[tuple[str, ...]]:
    for name, pair in pairs.items():
        ends = [
            follow(pair.draw(1.0, np.random.default_rng(seed)).tasks, bounds["accuracy_drop"]) for seed in range(draws)
        ]
        shares = [sum(end.outcome == o for end in ends) / draws for o in ("fail", "pass", "undecided")]
        used = sum(end.samples for end in ends) / draws
        yield (name, *(f"{100 * share:.0f} %" for share in shares), f"{used:,.0f}")


def _span(estimate: Estimate) -> str:
    interval = estimate.interval
    return figure(estimate.value) + (f" [{figure(interval.low)}, {figure(interval.high)}]" if interval else "")
