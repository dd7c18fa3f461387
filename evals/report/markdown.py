"""A verdict as Markdown, for pull request comments and CI summary pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from evals.gates import interim_analysis
from evals.gates.gates import figure
from evals.gates.multiplicity import holm
from evals.report import text_tables
from evals.report.speed_tables import how_paired
from evals.report.tables import bounds, kept, native_table, number, p_value, percent, points, size, span
from evals.stats.estimates import mcnemar
from qpack.core import side_by_side
from qpack.core.figures import DomainDifference
from qpack.core.records import Estimate, Outcome, Release, Verdict
from qpack.core.side_by_side import SideBySide

_MARKS: dict[Outcome, str] = {"pass": "✅ pass", "fail": "❌ fail", "undecided": "❔ undecided"}

_SHOWN = 5


def render(release: Release, verdict: Verdict, name: str) -> str:
    """The text. `name`, in the heading, is a reference or a recipe."""
    lines = [f"## {_cell(name)}: {_MARKS[verdict.outcome]}", "", *_recovery(release), _about(release), ""]
    if verdict.anomalies:
        lines += ["> **Anomalies**", *(f"> - {_cell(anomaly)}" for anomaly in verdict.anomalies), ""]
    if gains := text_tables.gained_table(release).rows:
        lines += ["Items gained beyond noise:", "", *(f"- `{_cell(row[0])}`: {row[2]}" for row in gains[:_SHOWN]), ""]
    lines += ["### Gates", "", *_gates(verdict), ""]
    if release.comparison.tasks:
        lines += ["### Accuracy by task", "", *_tasks(release), ""]
    lines += _generated(release)
    lines += ["### Text, size and speed", "", *_rest(release), "", how_paired(release), ""]
    lines += [*_native(release), *_needle(release), *_continued(release), *_contaminated(release)]
    return "\n".join(lines)


def _recovery(release: Release) -> list[str]:
    """The first figure: what is kept of the baseline's scores."""
    found, tasks = release.comparison.recovery, len(release.comparison.tasks)
    if found is None or not tasks:
        return []
    over = f"{tasks} tasks" if tasks > 1 else "1 task"
    return [
        f"**Recovery {percent(found.value)}** ({span(found, percent)}) of the baseline's mean score over {over}.",
        "",
    ]


def _generated(release: Release) -> list[str]:
    found = text_tables.generated_table(release)
    return ["### Generated answers", "", *table(found.head, found.rows), ""] if found.rows else []


def _native(release: Release) -> list[str]:
    found = native_table(release)
    return [f"### {_cell(found.caption)}", "", *table(found.head, found.rows), "", found.note, ""] if found else []


def _needle(release: Release) -> list[str]:
    found, side = release.comparison.needle, release.artifact.needle
    if found is None or side is None:
        return []
    text = (
        f"Needle in a haystack, {side.prompt_tokens:,} tokens (context {side.context_tokens:,}): of "
        f"{len(side.answers)} facts the baseline finds {percent(found.baseline)}, the artifact "
        f"{percent(found.artifact)}. {found.no_verdict}"
    )
    return ["### Long context", "", _cell(text), ""]


def _continued(release: Release) -> list[str]:
    """The worst windows with both continuations. Model text is code: no link, no image, no mention."""
    goes = text_tables.continued(release)[:_SHOWN]
    if not goes:
        return []
    rows = [(_cell(w.heading), code(w.follows), code(w.baseline), code(w.artifact)) for w in goes]
    head = ("Window", "Actual text", "Baseline continues", "Artifact continues")
    lines = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]
    fold = f"<details><summary>Continuations of the {len(goes)} worst windows of held-out text</summary>"
    return [fold, "", text_tables.continued_sentence(release), "", *lines, "", "</details>", ""]


def _contaminated(release: Release) -> list[str]:
    """Overlaps, if there are any."""
    found = [one for one in release.contamination.sets if one.overlaps] if release.contamination else []
    if not found:
        return []
    lines = [
        f"- {_cell(one.name)}: {len(one.overlaps):,} of {one.items:,} items, "
        f"{', '.join(f'`{_cell(x.item)}`' for x in one.overlaps[:_SHOWN])}{' …' if len(one.overlaps) > _SHOWN else ''}"
        for one in found
    ]
    return ["### Eval items that are also in calibration rows", "", *lines, ""]


def _about(release: Release) -> str:
    q = release.quantized
    groups = f", groups of {q.group_size}" if q.group_size else ""
    return (
        f"{_cell(q.method)} {_cell(q.scheme)}{groups} by {_cell(q.engine)} {_cell(q.engine_version)}; measured through "
        f"{_cell(release.artifact.server)} on {_cell(release.artifact.hardware.name)}. Artifact "
        f"`{q.digest[:12]}` of `{release.source.digest[:12]}`. Intervals are two-sided 90 %."
        + (f" {_cell(str(emulated))}" if (emulated := release.artifact.emulated) else "")
    )


def _gates(verdict: Verdict) -> Iterable[str]:
    if not verdict.gates:
        return ["No gates set."]
    rows = [
        (
            gate.gate,
            _MARKS[gate.outcome],
            figure(gate.estimate.value),
            span(gate.estimate, figure),
            ("≤ " if gate.kind == "max" else "≥ ") + figure(gate.bound),
            gate.why,
        )
        for gate in verdict.gates
    ]
    return table(("Gate", "Verdict", "Figure", "Interval", "Bound", "Why"), rows)


def _tasks(release: Release) -> Iterable[str]:
    tests = [
        mcnemar(np.array([s.score for s in b.samples]), np.array([s.score for s in a.samples]))
        for b, a in zip(release.baseline.accuracy.tasks, release.artifact.accuracy.tasks, strict=True)
    ]
    adjusted = holm([p for _, _, p in tests])
    rows = [
        (
            task.task,
            f"{task.drop.samples:,}",
            percent(task.baseline),
            percent(task.artifact),
            points(-task.drop.value),
            _turned(task.drop),
            *kept(task.recovery),
            f"−{lost} +{gained}",
            p_value(p),
        )
        for task, (lost, gained, _), p in zip(release.comparison.tasks, tests, adjusted, strict=True)
    ]
    if len(rows) > 1:
        drop, share = release.comparison.accuracy_drop, kept(release.comparison.recovery)
        means = (f"{drop.samples:,}", "", "", points(-drop.value), _turned(drop), *share)
        rows.append(("mean over tasks", *means, "", ""))
    change = ("Points", "Interval", "Recovery", "Interval")
    head = ("Task", "Items", "Baseline", "Artifact", *change, "Items − +", "p (McNemar, Holm)")
    at = interim_analysis.sentence(release.artifact.accuracy)
    return [*table(head, rows), *(["", f"Accuracy stopped early, at {at}."] if at else [])]


def _rest(release: Release) -> Iterable[str]:
    c = release.comparison
    rows = [
        _pair("Perplexity", side_by_side.perplexity(release), number),
        (c.kl_label, "", "", number(c.kl_divergence.value), span(c.kl_divergence, number)),
        *((("KL divergence, top-k lists only", "", "", bounds(c.tail), ""),) if c.tail else ()),
        ("Top token flipped", "", "", percent(c.flip_rate.value), span(c.flip_rate, percent)),
        *(row for domain in c.domains for row in _domain(domain)),
        _pair("Weights", side_by_side.weights_bytes(release), _bytes),
        *((_pair("Memory of the server", held, _bytes),) if (held := side_by_side.memory_bytes(release)) else ()),
        *(_pair(f"Output tokens/s, {s.concurrency} at once", s, number) for s in side_by_side.throughput(release)),
    ]
    return table(("", "Baseline", "Artifact", "Artifact vs. baseline", "Interval"), rows)


def _pair(name: str, pair: SideBySide, form: Callable[[float], str]) -> tuple[str, ...]:
    change = f"×{number(pair.ratio.value)}"
    return name, form(pair.baseline), form(pair.artifact), change, span(pair.ratio, number)


def _bytes(count: float) -> str:
    return size(round(count))


def _domain(domain: DomainDifference) -> Iterable[tuple[str, ...]]:
    ratio, kl, flips = domain.perplexity_ratio, domain.kl_divergence, domain.flip_rate
    perplexities = (number(domain.perplexity_baseline), number(domain.perplexity_artifact))
    yield f"Perplexity, {domain.domain}", *perplexities, f"×{number(ratio.value)}", span(ratio, number)
    yield f"KL divergence, {domain.domain}", "", "", number(kl.value), span(kl, number)
    yield f"Top token flipped, {domain.domain}", "", "", percent(flips.value), span(flips, percent)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A pipe table."""
    dashes = ["---"] * len(head)
    lines = [head, dashes, *rows]
    return [f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines]


def _turned(drop: Estimate) -> str:
    """The interval of a drop, in points gained."""
    return f"{points(-drop.interval.high)} to {points(-drop.interval.low)}" if drop.interval else "–"


def code(text: str) -> str:
    """Any text as code inside a table cell, fenced by more backticks than it contains."""
    plain = " ".join(text.split()).replace("|", "\\|")
    if not plain:
        return "(nothing)"
    fence = "`" * (max((len(run) for run in re.findall("`+", plain)), default=0) + 1)
    return f"{fence} {plain} {fence}"


def _cell(text: object) -> str:
    """Safe inside a table: one line, no column separators, no HTML."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
