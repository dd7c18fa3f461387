"""The report's tables of held-out text by domain, of continuations and of the needle test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evals.report.tables import Table, bounds, number, percent, points, sentence, span, visible
from qpack.core.findings import Needle, NeedleAnswer
from qpack.core.records import Release

_SHOWN = 8


@dataclass(frozen=True)
class ContinuedPair:
    """A window continued by both models, as text."""

    heading: str
    before: str
    follows: str
    baseline: str
    artifact: str
    same: bool


def domain_table(release: Release) -> Table:
    """Figures per text domain; no rows where there is one text."""
    rows = tuple(
        (
            f"{d.domain}, {d.windows:,} windows",
            f"{number(d.perplexity_baseline)} → {number(d.perplexity_artifact)}",
            f"×{number(d.perplexity_ratio.value)} ({span(d.perplexity_ratio, number)})",
            f"{number(d.kl_divergence.value)} ({span(d.kl_divergence, number)})",
            bounds(d.tail) if d.tail else "–",
            f"{percent(d.flip_rate.value)} ({span(d.flip_rate, percent)})",
        )
        for d in release.comparison.domains
    )
    head = ("Domain", "Perplexity", "Ratio", "KL, nats", "KL, top-k lists only", "Flipped")
    note = "The table above covers all windows; this one each domain's windows, with their intervals."
    return Table("Held-out text by domain", head, rows, note)


def gained_table(release: Release) -> Table:
    """Items of the tasks whose gain is beyond noise, with both answers where they are kept; no rows without a gain."""
    rows = tuple(
        (
            each.item,
            visible(each.prompt),
            f"{number(each.baseline)} → {number(each.artifact)}",
            visible(each.baseline_answer) or "–",
            visible(each.artifact_answer) or "–",
        )
        for each in release.comparison.gained
    )
    head = ("Item", "Prompt", "Score", "Baseline answers", "Artifact answers")
    note = (
        "At most five items per task. Rounding weights doesn't teach a model: look for a cause in prompts and serving."
    )
    return Table("Items gained, where the gain is beyond noise", head, rows, note)


def generated_table(release: Release) -> Table:
    """Cut answers, endless loops and lengths of the tasks asked over chat; no rows without one."""
    settings = {task.task: task.generation for task in release.artifact.accuracy.tasks}
    rows = tuple(
        (
            task.task,
            f"{task.answers:,}",
            f"{s.repeats} at temperature {s.temperature:g}" if (s := settings.get(task.task)) else "",
            f"{percent(task.truncated_baseline)} → {percent(task.truncated.value)} ({span(task.truncated, percent)})",
            f"{percent(task.loops_baseline)} → {percent(task.loops_baseline + task.loop_rate.value)} "
            f"({span(task.loop_rate, points)} points)",
            f"{number(task.tokens_baseline)} → {number(task.tokens_baseline * task.length_ratio.value)} "
            f"(×{number(task.length_ratio.value)}, {span(task.length_ratio, number)})",
        )
        for task in release.comparison.generated
    )
    head = ("Task", "Answers", "Per item", "Cut at the limit", "Endless loops", "Tokens per answer")
    note = (
        "Baseline → artifact. Items are the clusters of each interval; a loop is an answer that was cut while it "
        "repeated itself."
    )
    return Table("Generated answers", head, rows, note)


def continued(release: Release) -> tuple[ContinuedPair, ...]:
    """The worst windows with both continuations; none if the recipe has none."""
    found = release.comparison.continued
    if found is None:
        return ()
    return tuple(
        ContinuedPair(
            heading=f"Window {w.window + 1}{f', {w.domain}' if w.domain else ''}: {number(w.kl)} nats, "
            f"{percent(w.flips)} flipped, first {w.alike} of {found.tokens} tokens equal",
            before=visible(w.before),
            follows=visible(w.follows),
            baseline=visible(w.baseline),
            artifact=visible(w.artifact),
            same=w.baseline == w.artifact,
        )
        for w in found.worst
    )


def continued_sentence(release: Release) -> str:
    """How long the continuations agree, over all windows; empty if the recipe has none."""
    found = release.comparison.continued
    if found is None:
        return ""
    return (
        f"Both models continued each window greedily in place of its last {found.tokens} tokens. {found.same:,} of "
        f"{found.windows:,} continuations are equal; on average the first {number(found.alike)} tokens are."
    )


def needle_table(release: Release) -> Table:
    """Facts found per depth of the context, and wrong replies; no rows without a needle test."""
    before, after, found = release.baseline.needle, release.artifact.needle, release.comparison.needle
    if before is None or after is None or found is None:
        return Table("", ("",), ())
    rows = [
        (
            f"{100 * depth:g} %",
            *(f"{sum(a.found for a in _at(side, depth))} of {len(_at(side, depth))}" for side in (before, after)),
            _missed(before, after, depth),
        )
        for depth in dict.fromkeys(answer.depth for answer in after.answers)
    ]
    totals = (percent(found.baseline), percent(found.artifact))
    rows.append(("All", *totals, f"{points(found.drop.value)} points lost ({span(found.drop, points)})"))
    caption = f"Needle in a haystack: facts hidden in {after.prompt_tokens:,} tokens, context {after.context_tokens:,}"
    how = "with the chat template" if after.chat else "as text to continue"
    note = f"Asked {how}; a fact is found when the reply contains its number. {sentence(found.drop.method)}"
    head = ("Depth", "Baseline found", "Artifact found", "Wrong replies of the artifact")
    return Table(caption, head, tuple(rows), f"{note} {found.no_verdict}".strip())


def _at(side: Needle, depth: float) -> list[NeedleAnswer]:
    return [answer for answer in side.answers if answer.depth == depth]


def _missed(before: Needle, after: Needle, depth: float) -> str:
    """The artifact's replies where only the baseline found the fact."""
    pairs: Sequence[tuple[str, str]] = [
        (b.expected, a.reply)
        for b, a in zip(before.answers, after.answers, strict=True)
        if b.depth == depth and b.found and not a.found
    ]
    return "; ".join(f"“{visible(reply).strip()}” for {expected}" for expected, reply in pairs[:_SHOWN]) or "–"
