"""Whether the evidence carries any signal; without it no gate may pass, whatever the recipe gates.

A gate looks at one figure, and a broken model may have a good one: with every token flipped and a perplexity of 10^11,
lists of 16 tokens that share nothing gave a KL divergence of 0.0035. So each model is held against what a model does
that knows nothing, on the text and on the tasks:

- guessing all tokens alike has a perplexity of the vocabulary's size;
- predicting without the text agrees with the baseline's predictions by chance (`Comparison.chance_flips`);
- guessing answers scores `TaskScore.chance`.

A model is better than such a guess where the whole interval of its figure is (one-sided 95 %), or an exact binomial
test says so at 5 %, Holm-adjusted over tasks. "Not shown to be better" is what few samples leave too, so it fails an
artifact only together with a loss that is shown; else the answer is undecided. A task that is too hard for both models
is no fault of either: only where no task carries signal is there nothing to compare. One convention, `LEFT`: less than
a tenth of the way from chance to certainty is nothing.

- `sanity[baseline-perplexity]`, undecided: the baseline isn't shown to be better than guessing all tokens alike.
- `sanity[baseline-worthless]`, undecided: nor does it answer any task better than by guessing.
- `sanity[baseline-tasks]`, undecided: it is shown to answer every task hardly better than by guessing.
- `sanity[baseline-expected]`, undecided: a score of the baseline is outside the tolerance of the published one.
- `sanity[artifact-figures]`, fail: perplexity, divergence or flips of the artifact aren't numbers.
- `sanity[artifact-perplexity]`: the artifact is worse than that guess (fail), or not shown to be better (undecided).
- `sanity[artifact-kernels]`, fail: vLLM's perplexity of the artifact is above that of plain transformers on the same
  weights by more than `KERNELS`.
- `sanity[artifact-flips]`, fail: most tokens flipped, and as many as by chance, or nearly (`LEFT`).
- `sanity[artifact-tasks]`, fail: a task that the baseline answers better than by guessing isn't by the artifact, and a
  loss on it is shown; undecided where that holds of all tasks together without a loss that is shown.
- `sanity[artifact-answers]`, `sanity[baseline-answers]`: answers over chat that never end or are empty (`chat_signal`).

A worthless baseline makes everything undecided, for nothing follows from a comparison with it. If the baseline isn't
shown to answer any task better than by guessing (few items), but the text carries signal, the gates on the text stand,
and those on accuracy can't pass: they are undecided (`accuracy_silent`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evals.gates import chat_signal
from evals.gates.gates import figure
from evals.gates.multiplicity import holm, p_beyond
from evals.stats import distributions, estimates
from qpack.core.records import (
    Comparison,
    Estimate,
    Evidence,
    ExpectedScore,
    GateResult,
    Language,
    Outcome,
    TaskDifference,
    TaskScore,
)

SANITY = "sanity"
MEANING = "Whether the evidence carries signal. Always on: a recipe neither sets nor disables this gate."
LEVEL = (1 - estimates.CONFIDENCE) / 2
KERNELS = 0.05
"""How far vLLM's perplexity may be above that of plain transformers in float32: a convention."""
LEFT = 0.1
"""Agreement beyond chance (Cohen's kappa) below which nothing is left of what agrees: a convention, half of what Landis
and Koch (Biometrics 33, 1977) call slight.
"""


def check(comparison: Comparison, baseline: Evidence, artifact: Evidence) -> tuple[GateResult, ...]:
    """One result for each condition that isn't met; none where the evidence carries signal. Pure."""
    text = _text(baseline.language)
    if text is not None and text[0] != "pass":
        return _of_baseline(baseline, text, worthless=not any_above_chance(baseline.accuracy.tasks))
    found = [
        _baseline_tasks(baseline),
        _expected(comparison),
        _kernels(comparison),
        _figures(comparison),
        _artifact_text(artifact.language),
        _flips(comparison),
        _tasks(comparison, baseline, artifact),
        _one_task(comparison, baseline, artifact),
        *(
            _result(found.code, found.bound, found.estimate, found.outcome, found.why)
            for found in chat_signal.check(baseline.accuracy.tasks, artifact.accuracy.tasks)
        ),
    ]
    # One result for each code: of a model without any signal on its tasks, that on all of them.
    kept = {result.gate: result for result in reversed(found) if result is not None}
    return tuple(result for result in found if result is not None and kept[result.gate] is result)


def accuracy_silent(baseline: Evidence) -> str:
    """Why no gate on accuracy may pass: the baseline is no better than guessing. Empty if it is on some task, or
    where guessing isn't known for every task.
    """
    tasks = baseline.accuracy.tasks
    if not tasks or any(task.chance is None for task in tasks) or any_above_chance(tasks):
        return ""
    return (
        f"The baseline answers no task better than by guessing ({_scores(tasks)}), so a small drop shows nothing. "
        "Choose easier tasks, or more items."
    )


def any_above_chance(tasks: Sequence[TaskScore]) -> bool:
    """Whether a task's score is above that of guessing: one-sided tests at 5 %, Holm-adjusted over the tasks.

    A task whose chance isn't known says nothing. Right and wrong answers get the exact binomial test, other scores a t
    test of their mean.
    """
    known = [task for task in tasks if task.chance is not None and task.samples]
    return any(p <= LEVEL for p in holm([_p_above(task) for task in known]))


def _p_above(task: TaskScore) -> float:
    """The one-sided p-value of "no better than guessing"."""
    scores = np.array([sample.score for sample in task.samples], dtype=np.float64)
    chance = task.chance or 0.0
    if not np.isfinite(scores).all():
        return 1.0
    if np.isin(scores, (0.0, 1.0)).all():
        if chance <= 0:
            # Nobody guesses a number, but a right one or two of many is no skill either: the rate that no right answer
            # at all would leave possible (the rule of three) takes the place of chance.
            chance = 1 - LEVEL ** (1 / len(scores))
        return distributions.binomial_sf(scores.sum() - 1, len(scores), min(chance, 1.0))
    spread = float(scores.std(ddof=1)) if len(scores) > 1 else 0.0
    if spread == 0:
        return 0.0 if float(scores.mean()) > chance and len(scores) > 1 else 1.0
    return distributions.t_sf((scores.mean() - chance) / spread * math.sqrt(len(scores)), len(scores) - 1)


def _text(language: Language) -> tuple[Outcome, Estimate] | None:
    """Perplexity against the vocabulary's size: pass where the whole interval is below it, fail where it is above.

    None where the vocabulary isn't known, or no text was scored.
    """
    if not language.windows:
        return None
    nll = np.array([w.nll for w in language.windows], dtype=np.float64)
    tokens = np.array([w.tokens for w in language.windows], dtype=np.float64)
    found = estimates.perplexity_interval(nll, tokens)
    if not math.isfinite(found.value):
        return "fail", found
    if language.vocabulary is None:
        return None
    low, high = (found.interval.low, found.interval.high) if found.interval else (found.value, found.value)
    if low > language.vocabulary:
        return "fail", found
    return ("pass" if high < language.vocabulary else "undecided"), found


def _of_baseline(baseline: Evidence, text: tuple[Outcome, Estimate] | None, worthless: bool) -> tuple[GateResult, ...]:
    if text is None:
        return ()
    outcome, found = text
    why = f"The baseline's perplexity, {_span(found)}, {_is_worse(outcome, baseline.language)}"
    code = "baseline-perplexity"
    if worthless:
        code = "baseline-worthless"
        why += f", and it answers no task better than by guessing ({_scores(baseline.accuracy.tasks)})"
    why += ". A comparison with it shows nothing. Look at the source's checkpoint, its tokenizer and how it is served."
    return (_result(code, baseline.language.vocabulary or 0, found, "undecided", why),)


def _is_worse(outcome: Outcome, language: Language) -> str:
    size = f"{language.vocabulary:,}" if language.vocabulary else "the vocabulary's"
    is_worse = "is no better than" if outcome == "fail" else "is not shown to be better than"
    return f"{is_worse} that of guessing all {size} tokens alike"


def _baseline_tasks(baseline: Evidence) -> GateResult | None:
    """A baseline that is shown to be at chance on every task: the upper 95 % bound of each score is below `LEFT` of
    the way from chance to a whole score. Few items show nothing.
    """
    tasks = baseline.accuracy.tasks
    if not tasks or any_above_chance(tasks) or not all(_at_chance(task) for task in tasks):
        return None
    mean = _mean_score(tasks)
    why = (
        f"The baseline answers no task better than by guessing ({_scores(tasks)}): a comparison with it says nothing "
        "of what the tasks ask. Choose easier tasks, look at how they are asked, or leave them out."
    )
    chance = float(np.mean([task.chance for task in tasks if task.chance is not None]))
    return _result("baseline-tasks", chance, mean, "undecided", why).model_copy(update={"kind": "min"})


def _at_chance(task: TaskScore) -> bool:
    scores = np.array([sample.score for sample in task.samples], dtype=np.float64)
    if task.chance is None or not len(scores) or not np.isfinite(scores).all():
        return False
    right = float(np.clip(scores, 0, 1).sum())
    high = estimates.clopper_pearson(round(right), len(scores), LEVEL)[1]
    return high < task.chance + LEFT * (1 - task.chance)


def _figures(comparison: Comparison) -> GateResult | None:
    """What no model gives that predicts anything: figures of text that aren't numbers."""
    figures = {
        "perplexity_ratio": comparison.perplexity_ratio,
        "kl_divergence": comparison.kl_divergence,
        "flip_rate": comparison.flip_rate,
    }
    bad = {name: found for name, found in figures.items() if found.samples and not math.isfinite(found.value)}
    if not bad:
        return None
    why = (
        f"{' and '.join(bad)} can't be computed: log-probabilities are missing or aren't numbers. "
        "`qpack doctor CHECKPOINT` looks for weights that aren't numbers; the server's log has more."
    )
    return _result("artifact-figures", 0, next(iter(bad.values())), "fail", why)


def _kernels(comparison: Comparison) -> GateResult | None:
    """Perplexity in vLLM against that of plain transformers on the artifact's weights."""
    ratio = comparison.cross_check
    if ratio is None or (ratio.interval.low if ratio.interval else ratio.value) <= 1 + KERNELS:
        return None
    why = (
        f"vLLM's perplexity of the artifact is {_span(ratio)} times that of plain transformers, which reads the same "
        f"weights. Quantization isn't the cause: a kernel, or an argument of the server, is. The whole ratio to the "
        f"baseline is {figure(comparison.perplexity_ratio.value)}. Serve with other kernels (see `qpack plan`), or "
        "another version of vLLM."
    )
    return _result("artifact-kernels", 1 + KERNELS, ratio, "fail", why)


def _expected(comparison: Comparison) -> GateResult | None:
    """The baseline's scores beside published ones; the one that is furthest away stands in the result."""
    wrong = [score for score in comparison.expected if disagrees(score)]
    if not wrong:
        return None
    worst = max(wrong, key=lambda score: abs(score.measured.value - score.published))
    named = "; ".join(
        f"{score.task} {figure(score.measured.value)} ({_span(score.measured)}), published {figure(score.published)}"
        for score in wrong[:4]
    )
    why = (
        f"The baseline's scores aren't those that were published for it, within {figure(worst.tolerance)}: {named}. A "
        "baseline that is broken is no baseline: look at its chat template, the prompts and few-shot examples, and how "
        "it is served."
    )
    return _result("baseline-expected", worst.published, worst.measured, "undecided", why)


def disagrees(score: ExpectedScore) -> bool:
    """Whether the whole interval of the measured score is outside the tolerance."""
    held, low, high = score.measured.interval, score.published - score.tolerance, score.published + score.tolerance
    if held is None:
        return not low <= score.measured.value <= high
    return held.high < low or held.low > high


def _artifact_text(language: Language) -> GateResult | None:
    judged = _text(language)
    if judged is None or judged[0] == "pass":
        return None
    outcome, found = judged
    why = (
        f"The artifact's perplexity, {_span(found)}, {_is_worse(outcome, language)}. The baseline's is. "
        "`qpack doctor CHECKPOINT --against SOURCE` looks for the cause."
    )
    return _result("artifact-perplexity", language.vocabulary or 0, found, outcome, why)


def _flips(comparison: Comparison) -> GateResult | None:
    """Most tokens flipped, and the interval reaches what chance gives. In records without that figure, chance is taken
    to agree nowhere.
    """
    flips = comparison.flip_rate
    told = comparison.chance_flips
    chance = told if told is not None and 0 <= told <= 1 else 1.0
    low, high = (flips.interval.low, flips.interval.high) if flips.interval else (flips.value, flips.value)
    if not flips.samples or not (low > 0.5 and (high >= chance or low > (1 - LEFT) * chance)):
        return None
    why = (
        f"The artifact's most probable token differs from the baseline's at {_span(flips)} of the positions, and would "
        f"at {figure(chance)} if it predicted without the text. Little or nothing of the baseline is left in it. "
        "`qpack doctor CHECKPOINT --against SOURCE` looks for the cause."
    )
    return _result("artifact-flips", chance, flips, "fail", why)


def _tasks(comparison: Comparison, baseline: Evidence, artifact: Evidence) -> GateResult | None:
    """The artifact against guessing, on the tasks that the baseline can do."""
    before, after = baseline.accuracy.tasks, artifact.accuracy.tasks
    known = all(task.chance is not None for task in after)
    if not after or not known or not any_above_chance(before) or any_above_chance(after):
        return None
    drop = comparison.accuracy_drop
    drops = [drop, *(task.drop for task in comparison.tasks)]
    lost = any(each.interval is not None and each.interval.low > 0 for each in drops)
    mean_chance = float(np.mean([task.chance for task in after if task.chance is not None]))
    mean = _mean_score(after)
    shown = "and lost accuracy that the baseline has" if lost else "though no loss is shown; ask more items"
    why = f"The artifact answers no task better than by guessing ({_scores(after)}), {shown}."
    result = _result("artifact-tasks", mean_chance, mean, "fail" if lost else "undecided", why)
    return result.model_copy(update={"kind": "min"})


def _one_task(comparison: Comparison, baseline: Evidence, artifact: Evidence) -> GateResult | None:
    """A task that the baseline can do and the artifact can't any more, with a loss that is shown (5 %, Holm over the
    tasks). Of a task whose chance isn't known, one that the artifact never answers right.
    """
    drops = {task.task: task for task in comparison.tasks}
    pairs = [
        (b, a, drops[a.task])
        for b, a in zip(baseline.accuracy.tasks, artifact.accuracy.tasks, strict=False)
        if b.task == a.task and b.task in drops and b.samples and a.samples
    ]
    if not pairs:
        return None
    able = holm([_p_above(_guessed(before)) for before, _, _ in pairs])
    still = holm([_p_above(_guessed(after)) for _, after, _ in pairs])
    lost = holm([_p_lost(drop) for *_, drop in pairs])
    gone = [
        (a, drop)
        for (_, a, drop), p_before, p_after, p_drop in zip(pairs, able, still, lost, strict=True)
        if p_before <= LEVEL and p_after > LEVEL and p_drop <= LEVEL
    ]
    if not gone:
        return None
    task, drop = gone[0]
    chance = task.chance or 0.0
    why = (
        f"Nothing shows that the artifact answers {', '.join(a.task for a, _ in gone)} better than by guessing "
        f"({_scores([a for a, _ in gone])}), and the baseline does (first of them: {figure(drop.baseline)}). Look at "
        "some answers: the chat template, the stop tokens, or the weights are damaged."
    )
    mean = Estimate(value=drop.artifact, samples=len(task.samples), interval=None, method=f"mean score of {task.task}")
    return _result("artifact-tasks", chance, mean, "fail", why).model_copy(update={"kind": "min"})


def _guessed(task: TaskScore) -> TaskScore:
    """With a chance of 0 where it isn't known: who is no better than that is no better than any."""
    return task if task.chance is not None else task.model_copy(update={"chance": 0.0})


def _p_lost(drop: TaskDifference) -> float:
    found = p_beyond(drop.drop, "max", 0.0)
    return 1.0 if found is None else found


def _mean_score(tasks: Sequence[TaskScore]) -> Estimate:
    return Estimate(
        value=float(np.mean([task.mean for task in tasks])),
        samples=sum(len(task.samples) for task in tasks),
        interval=None,
        method="mean score over tasks; each against guessing, exact binomial tests, Holm-adjusted",
    )


def _result(code: str, bound: float, estimate: Estimate, outcome: Outcome, why: str) -> GateResult:
    return GateResult(gate=f"{SANITY}[{code}]", kind="max", bound=bound, estimate=estimate, outcome=outcome, why=why)


def _span(estimate: Estimate) -> str:
    held = estimate.interval
    return figure(estimate.value) if held is None else f"{figure(held.low)} to {figure(held.high)}"


def _scores(tasks: Sequence[TaskScore]) -> str:
    shown = [f"{task.task} {figure(task.mean)}, guessing {figure(task.chance or 0)}" for task in tasks]
    return "; ".join(shown[:4]) or "no task was asked"
