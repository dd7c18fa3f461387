"""Recompute a release's comparison and verdict from its evidence, and report what differs. Pure.

A release could contain any figure and any verdict. The measurements can't be repeated here, but everything computed
from them can, with the build's own code and seed. KL divergence and flip rate are recomputed from sums over windows
(`Divergences`), with the release's estimator; for an older release without these sums only their form is checked.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from evals.comparison import compare
from evals.comparison.verdicts import verdict
from evals.gates.group_sequential import LOOKS, levels
from evals.stats import divergence_estimate, estimates
from qpack.core.errors import QpackError
from qpack.core.findings import Divergences
from qpack.core.records import Accuracy, Estimate, GateResult, Language, Release, SpeedRatio, TaskScore, Verdict
from qpack.core.speed import Interleaved

# For sums of floats in another order.
_RELATIVE, _ABSOLUTE = 1e-6, 1e-9
# Of an interval's width: another version of numpy or scipy may draw other resamples; the ends then differ by about 2 %.
_OF_WIDTH = 0.05
# Texts, and fields that are computed from log-probabilities or texts that a release doesn't hold.
_NOT_COMPARED = frozenset(
    ("method", "tail", "worst", "continued", "apart", "domains", "divergences", "chance_flips", "gained")
)
_MOST_SAMPLES = 2_000_000


def figures(release: Release, seed: int, published: compare.Published | None = None) -> tuple[str, ...]:
    """Every figure of the comparison that differs from the recomputed one, or why none can be recomputed."""
    before, after = release.baseline, release.artifact
    if problems := [problem.message for problem in compare.differences(before, after)]:
        return tuple(f"baseline and artifact can't be compared: {what}" for what in problems)
    stated = release.comparison
    problems = [*_looks(after.accuracy), *_texts(before.language), *_sums(stated.divergences, before.language)]
    if problems:
        return tuple(problems)
    try:
        with np.errstate(all="ignore"):
            again = (stated.kl_divergence, stated.flip_rate)
            if stated.divergences is not None:
                again = compare.of_sums(stated.divergences, before.language.top_k, seed=seed)
            found = compare.of_evidence(
                before, after, again, interleaved=release.interleaved, seed=seed, published=published
            )
            texts = compare.domain_texts(before.language, after.language, seed=seed)
            of_domains = _of_domains(stated.divergences, before.language, seed)
    # Arithmetic on arbitrary numbers; scipy has no exceptions of its own.
    except (ValueError, ArithmeticError, LookupError, QpackError) as error:
        return (f"figures can't be recomputed: {error or type(error).__name__}",)
    found = found.model_copy(update={"speed": _as_written(stated.speed, found.speed, release.interleaved)})
    wrong = [*_differing(stated.model_dump(), found.model_dump(), "")]
    names = [domain.domain for domain in stated.domains]
    if names != [text.domain for text in texts]:
        wrong.append("domains: differ from those of the evidence")
    else:
        for domain, text, own in zip(stated.domains, texts, of_domains or [{}] * len(texts), strict=True):
            due = dataclasses.asdict(text) | _ratio_of(text) | own
            wrong += _differing(domain.model_dump(), due, domain.domain)
    divergences = [("kl_divergence", stated.kl_divergence, len(before.language.windows), math.inf),
                   ("flip_rate", stated.flip_rate, len(before.language.windows), 1.0)]  # fmt: skip
    for domain in stated.domains:
        divergences += [(f"{domain.domain}.kl_divergence", domain.kl_divergence, domain.windows, math.inf),
                        (f"{domain.domain}.flip_rate", domain.flip_rate, domain.windows, 1.0)]  # fmt: skip
    for name, estimate, windows, most in divergences:
        wrong += _odd(name, estimate, windows, most)
    return tuple(wrong)


def _as_written(
    stated: Sequence[SpeedRatio], found: Sequence[SpeedRatio], interleaved: Interleaved | None
) -> tuple[SpeedRatio, ...]:
    """The speeds, with the rates of qpack 0.1 where the release has those: medians over the rounds, or none."""
    rounds = {level.concurrency: level.rounds for level in interleaved.levels} if interleaved else {}

    def rate(speed: SpeedRatio, written: SpeedRatio) -> SpeedRatio:
        runs = rounds.get(speed.concurrency, ())
        medians = tuple(
            statistics.median(getattr(turn, side).output_tokens_per_second for turn in runs)
            for side in ("reference", "subject")
            if runs
        )
        old = written.tokens_per_second == (medians or None)
        return speed.model_copy(update={"tokens_per_second": written.tokens_per_second}) if old else speed

    return tuple(rate(*pair) for pair in zip(found, stated, strict=True)) if len(found) == len(stated) else tuple(found)


def _sums(divergences: Divergences | None, language: Language) -> Iterator[str]:
    """What sums over this text's windows don't look like."""
    if divergences is None:
        return
    known = (divergence_estimate.LOWER_BOUND, divergence_estimate.WHOLE)
    if divergences.estimator not in known:
        yield f"kl_divergence: estimator {divergences.estimator} is none that this qpack knows"
    windows = divergences.windows
    if [w.positions for w in windows] != [w.tokens for w in language.windows]:
        yield "divergences: they aren't of the held-out text's windows"
    if sum(w.sampled for w in windows) != language.whole_positions:
        yield f"divergences: not of the {language.whole_positions:,} positions whose whole distribution was asked for"
    for number, w in enumerate(windows, 1):
        sums = (w.bound, w.rest, *w.covariates, *w.sampled_covariates, *w.squares, *w.products)
        counts = 0 <= w.flips <= w.positions and 0 <= w.sampled <= w.positions
        # Rounding alone can take the sum of what is above a lower bound below 0.
        if not counts or not all(math.isfinite(x) for x in sums) or w.bound < 0 or w.rest < -1e-3 * w.positions:
            yield f"divergences: window {number} has sums that no window has"
            return


def _of_domains(divergences: Divergences | None, language: Language, seed: int) -> list[dict[str, Any]]:
    """KL divergence and flip rate of each text domain as plain data; none where there are no sums."""
    found = []
    for span in compare.domain_windows(language) if divergences is not None else ():
        own = divergences.model_copy(update={"windows": divergences.windows[span.start : span.stop]})  # type: ignore[union-attr]
        kl, flips = compare.of_sums(own, language.top_k, seed=seed)
        found.append({"kl_divergence": kl.model_dump(), "flip_rate": flips.model_dump()})
    return found


def verdict_of(release: Release, bounds: Mapping[str, float]) -> tuple[str, ...]:
    """Where the verdict differs from the one computed from the comparison and `bounds`, the recipe's gates."""
    try:
        with np.errstate(all="ignore"):
            found = verdict(release.comparison, release.baseline, release.artifact, bounds)
    except (ValueError, ArithmeticError, LookupError) as error:
        return (f"verdict can't be recomputed: {error or type(error).__name__}",)
    return tuple(_verdict_differs(release.verdict, found))


def _verdict_differs(stated: Verdict, found: Verdict) -> Iterator[str]:
    there, due = ({gate.gate: gate for gate in side.gates} for side in (stated, found))
    if len(there) < len(stated.gates):
        yield "a gate is a duplicate"
    for name in due.keys() - there.keys():
        yield f"{name}: the recipe has this gate, the verdict doesn't"
    for name in there.keys() - due.keys():
        yield f"{name}: the verdict has this gate, the recipe doesn't"
    for name in (name for name in due if name in there):
        yield from _gate_differs(there[name], due[name])
    if stated.outcome != found.outcome:
        yield f"the verdict is '{stated.outcome}', recomputed '{found.outcome}'"
    if len(stated.anomalies) != len(found.anomalies):
        yield f"{len(stated.anomalies)} anomalies, recomputed {len(found.anomalies)}"


def _gate_differs(stated: GateResult, found: GateResult) -> Iterator[str]:
    name = found.gate
    if (stated.kind, stated.bound) != (found.kind, found.bound):
        yield f"{name}: bound {stated.bound:g} ({stated.kind}), the recipe's is {found.bound:g} ({found.kind})"
    if any(_differing(stated.estimate.model_dump(), found.estimate.model_dump(), "")):
        yield f"{name}: figure {stated.estimate.value:g}, recomputed {found.estimate.value:g}"
    if stated.outcome != found.outcome:
        yield f"{name}: '{stated.outcome}', recomputed '{found.outcome}': {found.why}"
    p = (stated.holm_p, found.holm_p)
    if p[0] is not None and (p[1] is None or not math.isclose(p[0], p[1], rel_tol=1e-3, abs_tol=1e-6)):
        yield f"{name}: p-value {p[0]:g}, recomputed {p[1]}"


def _looks(accuracy: Accuracy) -> Iterator[str]:
    """A look sets the width of accuracy's intervals: it must be one of a build's looks."""
    look = accuracy.look
    if look is not None:
        known = dict(enumerate(zip(LOOKS, levels(LOOKS), strict=True), 1))
        share, tail = known.get(look.number, (math.nan, math.nan))
        same = math.isclose(look.share, share, rel_tol=_RELATIVE) and math.isclose(look.tail, tail, rel_tol=1e-3)
        if look.looks != len(LOOKS) or not same:
            yield f"accuracy stopped at look {look.number} of {look.looks}, which isn't one of a build's looks"
    for task in accuracy.tasks:
        yield from _answers(task)
    if sum(len(task.samples) for task in accuracy.tasks) > _MOST_SAMPLES:
        yield f"more than {_MOST_SAMPLES:,} samples"


def _answers(task: TaskScore) -> Iterator[str]:
    """Counts of generated answers that no answers give."""
    if not task.generated:
        return
    repeats = task.generation.repeats if task.generation else 0
    fits = len(task.generated) == len(task.samples) and all(
        len(item.tokens) == repeats
        and min(item.tokens, default=0) >= 0
        and 0 <= item.looped <= item.truncated <= repeats
        for item in task.generated
    )
    if not fits or repeats < 1:
        yield f"{task.task}: the counts of its generated answers aren't those of {repeats} answers per item"


def _texts(language: Language) -> Iterator[str]:
    counts = [domain.windows for domain in language.domains]
    if counts and (min(counts) < 0 or sum(counts) != len(language.windows)):
        yield "the domains' windows don't add up to those of the held-out text"
    if len(language.windows) > _MOST_SAMPLES:
        yield f"more than {_MOST_SAMPLES:,} windows"


def _odd(name: str, estimate: Estimate, windows: int, most: float) -> Iterator[str]:
    """What is implausible for an estimate over windows of text."""
    held = estimate.interval
    if estimate.samples != windows and (windows or estimate.samples):
        yield f"{name}: {estimate.samples:,} samples, but there are {windows:,} windows"
    if not 0 <= estimate.value <= most:
        yield f"{name}: {estimate.value:g} is out of range"
    if held is not None and not (held.low <= estimate.value <= held.high and held.confidence == estimates.CONFIDENCE):
        shown = f"{held.low:g} to {held.high:g} at {held.confidence:g}"
        yield f"{name}: interval {shown} isn't one around {estimate.value:g} at {estimates.CONFIDENCE:g}"


def _differing(stated: Any, found: Any, at: str) -> Iterator[str]:
    """Where data of a release differs from the recomputed data, by path."""
    if isinstance(found, Mapping) and isinstance(stated, Mapping):
        if {"low", "high", "confidence"} == found.keys():
            yield from _interval_differs(stated, found, at)
            return
        for name in found:
            # Early releases have no interval of the time to first token, and no recovery.
            if name not in _NOT_COMPARED and not (name in ("ttft", "recovery") and stated[name] is None):
                yield from _differing(stated[name], found[name], f"{at}.{name}" if at else name)
    elif isinstance(found, list | tuple) and isinstance(stated, list | tuple):
        if len(stated) != len(found):
            yield f"{at}: {len(stated)} entries, recomputed {len(found)}"
        for number, (one, other) in enumerate(zip(stated, found, strict=False)):
            yield from _differing(one, other, f"{at}[{number}]")
    elif not _same(stated, found):
        yield f"{at}: {_short(stated)}, recomputed {_short(found)}"


def _interval_differs(stated: Mapping[str, float], found: Mapping[str, float], at: str) -> Iterator[str]:
    width = abs(found["high"] - found["low"])
    room = _OF_WIDTH * width + _RELATIVE * max(abs(found["high"]), abs(found["low"])) + _ABSOLUTE
    ends = [
        stated[end] == found[end] or abs(stated[end] - found[end]) <= room
        if math.isfinite(room)
        else stated[end] == found[end]
        for end in ("low", "high")
    ]
    if not all(ends) or not math.isclose(stated["confidence"], found["confidence"], rel_tol=1e-3):
        shown = (f"{side['low']:g} to {side['high']:g} at {side['confidence']:g}" for side in (stated, found))
        yield f"{at}: {', recomputed '.join(shown)}"


def _same(stated: Any, found: Any) -> bool:
    if isinstance(stated, bool) or isinstance(found, bool) or not isinstance(found, int | float):
        return bool(stated == found)
    if not isinstance(stated, int | float):
        return False
    if math.isnan(found) or math.isnan(stated):
        return math.isnan(found) and math.isnan(stated)
    return math.isclose(stated, found, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)


def _short(value: Any) -> str:
    return (
        f"{value:g}"
        if isinstance(value, int | float)
        else "an interval"
        if isinstance(value, dict)
        else repr(value)[:60]
    )


def _ratio_of(text: compare.DomainText) -> dict[str, Any]:
    return {"perplexity_ratio": text.perplexity_ratio.model_dump()}
