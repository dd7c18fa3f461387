"""The report's tables: figures of a release as text with suitable digits and units."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from evals.gates.gates import figure
from evals.stats.estimates import mcnemar
from qpack.core import side_by_side
from qpack.core.findings import Contamination, Likely, Tail
from qpack.core.records import Calibrated, Estimate, Proof, Release
from qpack.core.side_by_side import on_accelerator, resident_label, server_bytes

_OVERLAPS = 10


@dataclass(frozen=True)
class Table:
    """Text of one table; the first cell of a row is its heading. `note` is shown below."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def task_table(release: Release) -> Table:
    """Scores per task, baseline and artifact, and the paired difference."""
    c = release.comparison
    scores = zip(release.baseline.accuracy.tasks, release.artifact.accuracy.tasks, strict=True)
    rows = []
    for task, (b, a) in zip(c.tasks, scores, strict=True):
        lost, gained, p = mcnemar(np.array([s.score for s in b.samples]), np.array([s.score for s in a.samples]))
        changed = f"−{lost} +{gained}"
        figures = (
            percent(task.baseline),
            percent(task.artifact),
            f"{points(task.drop.value)} ({span(task.drop, points)})",
            "{} ({})".format(*kept(task.recovery)),
        )
        rows.append((task.task, task.metric, str(b.few_shot), f"{task.drop.samples:,}", *figures, changed, p_value(p)))
    if len(rows) > 1:
        means = [sum(getattr(t, side) for t in c.tasks) / len(c.tasks) for side in ("baseline", "artifact")]
        drop = c.accuracy_drop
        lost_points = f"{points(drop.value)} ({span(drop, points)})"
        figures = (percent(means[0]), percent(means[1]), lost_points, "{} ({})".format(*kept(c.recovery)))
        rows.append(("Mean over tasks", "", "", f"{drop.samples:,}", *figures, "", ""))
    head = (
        "Task",
        "Metric",
        "Few-shot",
        "Items",
        "Baseline",
        "Artifact",
        "Points lost",
        "Recovery",
        "Items − +",
        "McNemar p",
    )
    note = (
        f"{sentence(c.accuracy_drop.method)} Items − + counts items with a lower and a higher score of the artifact; "
        "McNemar p is the probability of a count this uneven if neither model were better."
        f"{f' Recovery: {c.recovery.method}.' if c.recovery else ''}"
    )
    return Table(f"Accuracy, lm-eval {release.artifact.accuracy.lm_eval_version}", head, tuple(rows), note)


def kept(recovery: Estimate | None) -> tuple[str, str]:
    """A recovery and its interval; dashes in a release from before it was kept."""
    return (percent(recovery.value), span(recovery, percent)) if recovery else ("–", "–")


def text_table(release: Release) -> Table:
    """Perplexity, divergence and flips on the held-out text."""
    c, b, a = release.comparison, release.baseline.language, release.artifact.language
    tokens = sum(w.tokens for w in a.windows)
    ratio_span = span(c.perplexity_ratio, lambda x: number(x, 4))
    perplexities = (number(c.perplexity_baseline), number(c.perplexity_artifact))
    tail = c.tail and (bounds(c.tail), f"{percent(c.tail.mass)} of the probability is outside the lists")
    rows = (
        ("Perplexity", *perplexities, f"×{number(c.perplexity_ratio.value, 4)}", ratio_span),
        *(
            (("Artifact in vLLM over plain transformers", "", "", f"×{number(x.value, 4)}", span(x, number)),)
            if (x := c.cross_check) is not None
            else ()
        ),
        (c.kl_label, "", "", number(c.kl_divergence.value), span(c.kl_divergence, number)),
        *((("KL divergence, top-k lists only", "", "", *tail),) if tail else ()),
        ("Most probable token flipped", "", "", percent(c.flip_rate.value), span(c.flip_rate, percent)),
    )
    methods = (("Perplexity", c.perplexity_ratio), ("Divergence", c.kl_divergence), ("Flips", c.flip_rate))
    note = " ".join(f"{name}: {estimate.method}." for name, estimate in methods)
    if tail:
        note += (
            " Top-k lists only: at most, if no token outside both lists changed more than the most changed one inside."
        )
    caption = f"Held-out text: {tokens:,} tokens in {len(a.windows)} windows, top-{b.top_k} log-probabilities"
    return Table(caption, ("", "Baseline", "Artifact", "Artifact vs. baseline", "Interval"), rows, note)


def bounds(tail: Tail) -> str:
    """What the lists of the most probable tokens say of the divergence without whole distributions."""
    most = f"at most {number(tail.kl_at_most)}"
    return most if tail.kl_at_least is None else f"at least {number(tail.kl_at_least)}, {most}"


def worst_table(release: Release) -> Table:
    """The positions of the held-out text where the models differ most, with their predictions."""
    rows = tuple(
        (
            f"…{visible(x.context)}",
            visible(x.actual).strip() or "␣",
            _expected(x.baseline),
            _expected(x.artifact),
            number(x.kl),
        )
        for x in release.comparison.worst
    )
    head = ("Text before", "Actual token", "Baseline predicts", "Artifact predicts", "KL, nats")
    return Table("Largest differences, at most one position per window", head, rows)


def _expected(likely: tuple[Likely, ...]) -> str:
    return ", ".join(f"“{_token(x.text)}” {percent(x.probability)}" for x in likely)


def _token(text: str) -> str:
    return visible(text).strip() or "␣"


def visible(text: str) -> str:
    """A model's text on one line: line breaks and tabs become symbols, invisible characters (escape sequences, marks
    that change the reading direction) are replaced. Joiners stay: some scripts need them.
    """
    shown = text.replace("\r", "").replace("\n", "⏎").replace("\t", "⇥")
    hidden = (c not in "\u200c\u200d" and unicodedata.category(c)[0] == "C" for c in shown)
    return "".join("\N{REPLACEMENT CHARACTER}" if no else c for c, no in zip(shown, hidden, strict=True))


def native_table(release: Release) -> Table | None:
    """The artifact beside the source as it is stored; None where that wasn't measured."""
    beside = side_by_side.beside_native(release)
    if release.native is None or beside is None:
        return None
    c, pairs = beside.comparison, []
    if c.recovery is not None and c.tasks:
        means = [sum(getattr(t, side) for t in c.tasks) / len(c.tasks) for side in ("baseline", "artifact")]
        pairs.append(("Mean score over tasks", *map(percent, means), *kept(c.recovery)))
    text = side_by_side.perplexity(beside)
    pairs.append(("Perplexity", number(text.baseline), number(text.artifact), *_times(text.ratio)))
    pairs.append((c.kl_label, "", "", number(c.kl_divergence.value), span(c.kl_divergence, number)))
    pairs.append(("Most probable token flipped", "", "", percent(c.flip_rate.value), span(c.flip_rate, percent)))
    sizes = (("Weights", side_by_side.weights_bytes(beside)), ("Server memory", side_by_side.memory_bytes(beside)))
    for name, found in sizes:
        if found is None:
            continue
        pairs.append((name, size(round(found.baseline)), size(round(found.artifact)), *_times(found.ratio)))
    for speed in side_by_side.throughput(beside):
        name = f"Output tokens/s, {speed.concurrency} at once"
        pairs.append((name, number(speed.baseline), number(speed.artifact), *_times(speed.ratio)))
    head = ("", "As stored", "Artifact", "Artifact vs. stored", "Interval")
    note = "The source in its own format, on a server of its own, measured in the same way. No gate judges by it."
    return Table(f"The source as it is stored: {release.native.form}", head, tuple(pairs), note)


def _times(ratio: Estimate) -> tuple[str, str]:
    return f"×{number(ratio.value)}", span(ratio, number)


def memory_table(release: Release) -> Table:
    """Weights, KV cache and resident memory; of an emulated artifact the weights on disk alone."""
    b, a = release.baseline.memory, release.artifact.memory
    head = ("", "Baseline", "Artifact", "Ratio")
    if release.artifact.emulated is not None:
        row = ("Weights on disk", size(b.weights_bytes), size(a.weights_bytes), ratio(a.weights_bytes, b.weights_bytes))
        return Table("Memory of one server", head, (row,), str(release.artifact.emulated))
    held = resident_label(a)
    named: tuple[tuple[str, int | None, int | None], ...] = (
        ("Weights on disk", b.weights_bytes, a.weights_bytes),
        ("Loaded weights", b.weights_loaded_bytes, a.weights_loaded_bytes),
        ("KV cache", b.kv_cache_bytes, a.kv_cache_bytes),
        (f"{held}, idle", b.resident_bytes, a.resident_bytes),
        (f"{held}, peak under load", b.peak_resident_bytes, a.peak_resident_bytes),
    )
    rows = [(name, size(x), size(y), ratio(y, x)) for name, x, y in named if x is not None and y is not None]
    rows.append(
        (
            "KV cache capacity, tokens",
            f"{b.kv_cache_tokens:,}",
            f"{a.kv_cache_tokens:,}",
            ratio(a.kv_cache_tokens, b.kv_cache_tokens),
        )
    )
    rows.append(
        (
            "Server start",
            duration(b.start_seconds),
            duration(a.start_seconds),
            ratio(a.start_seconds, b.start_seconds),
        )
    )
    sizes = f"{size(server_bytes(b))} and {size(server_bytes(a))}"
    note = f"Server memory, which memory_ratio compares, is {sizes}: {release.comparison.memory_ratio.method}."
    return Table("Memory of one server", head, tuple(rows), note)


def stage_table(release: Release) -> Table:
    """Time per stage, and which stages were reused."""
    total = sum(s.seconds for s in release.stages)
    rows = [
        (
            s.stage,
            duration(s.seconds),
            f"{100 * s.seconds / total:.1f} %" if total else "",
            "reused" if s.reused else "run",
            s.key[:12],
        )
        for s in release.stages
    ]
    rows.append(("All", duration(total), "", "", ""))
    return Table("Time per stage", ("Stage", "Time", "Share", "Result", "Key"), tuple(rows))


def calibration_table(c: Calibrated) -> Table:
    """Calibration rows: used, cut, dropped."""
    lengths = f"{min(c.lengths):,} to {max(c.lengths):,}" if c.lengths else "none"
    rows = (
        ("Rows used", f"{c.rows:,} of {c.read:,} read"),
        ("Tokens", f"{c.tokens:,}"),
        ("Tokens per row", f"{lengths} (at most {c.max_length:,})"),
        ("Cut to length", f"{c.cut:,}"),
        ("Dropped: too short", f"{c.dropped_short:,}"),
        ("Dropped: duplicate", f"{c.dropped_duplicate:,}"),
        ("Dropped: in the held-out text", f"{c.dropped_held_out:,}"),
        ("Padding tokens", f"{c.padded_tokens:,}"),
        ("Double BOS removed", f"{c.double_bos_removed:,}"),
        ("Chat template", "applied" if c.chat_template else "not applied"),
        ("Seed", str(c.seed)),
        ("Digest", c.digest),
    )
    return Table("Calibration data", ("", ""), rows)


def canary_table(proof: Proof) -> Table:
    """Every check of the canary."""
    rows = tuple((c.name, c.claim, {"skip": "skipped"}.get(c.outcome, c.outcome), c.why) for c in proof.checks)
    asked = " and ".join(f"{name} {version}" for name, version in proof.clients.items())
    return Table("What clients rely on", ("Check", "Claim", "Outcome", "Result"), rows, f"Clients: {asked}.")


def contamination_table(found: Contamination) -> Table:
    """Eval items that are also in calibration rows."""
    rows: list[tuple[str, ...]] = []
    for one in found.sets:
        shared = [f"{x.item} in row {x.row[:12]} ({percent(x.share)} of it: “{x.words}”)" for x in one.overlaps]
        rest = f", and {len(shared) - _OVERLAPS:,} more" if len(shared) > _OVERLAPS else ""
        short = f", {one.too_short:,} too short to check" if one.too_short else ""
        head = f"{len(one.overlaps):,} of {one.items:,}{short}"
        rows.append((one.name, f"{head}: {'; '.join(shared[:_OVERLAPS])}{rest}" if shared else head))
    rows += [(name, "not checked: only lm-eval has the texts") for name in found.unchecked]
    note = (
        f"An overlap is a shared run of {found.ngram} words, or all of a shorter text, with one of {found.rows:,} rows."
    )
    return Table("Eval items that are also in calibration rows", ("", ""), tuple(rows), note)


def quantized_table(release: Release) -> Table:
    """The artifact and its quantization."""
    q = release.quantized
    rows = (
        ("Engine", f"{q.engine} {q.engine_version}"),
        ("Method and scheme", f"{q.method}, {q.scheme}"),
        # FP4 and MX formats have blocks of their own, so "none" would be wrong.
        *((("Group size", str(q.group_size)),) if q.group_size else ()),
        *((("Layers by scheme", _counts(q.layers_by_scheme)),) if q.layers_by_scheme else ()),
        *((("Format", q.format),) if q.format else ()),
        *((("Bits per weight", f"{q.bits_per_weight:.3f} with scales and zero points"),) if q.bits_per_weight else ()),
        ("Quantized layers", f"{q.quantized_layers:,} of {q.linear_layers:,} linear layers"),
        ("Weights", size(q.weights_bytes)),
        ("Time", duration(q.seconds)),
        (
            f"Peak memory of the engine{' (GPU)' if on_accelerator(release.artifact.memory) else ''}",
            size(q.peak_memory_bytes),
        ),
        ("Digest", q.digest),
    )
    return Table("Artifact", ("", ""), rows)


def _counts(layers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in layers.items())


def source_table(release: Release) -> Table:
    """The source model."""
    s = release.source
    rows = [
        ("Source", s.source),
        ("Resolved to", s.resolved),
        ("Architecture", f"{s.architecture}, {s.parameters:,} parameters"),
        ("Weights", size(s.weights_bytes)),
        ("Licence", s.license or "not stated"),
        ("Digest", s.digest),
    ]
    rows += [("Note", note) for note in s.notes]
    return Table("Source model", ("", ""), tuple(rows))


def hardware_table(release: Release) -> Table:
    """The machine of the measurements."""
    h = release.artifact.hardware
    rows = [
        ("Target", h.target),
        ("Processor" if not h.accelerators else "Device", h.name),
        ("Cores", str(h.cores)),
        ("Memory", size(h.memory_bytes)),
    ]
    if h.accelerators:
        rows.append(("Accelerators", f"{h.accelerators} with {size(h.accelerator_memory_bytes)} each"))
    rows.append(("Server", release.artifact.server))
    if release.artifact.emulated is not None:
        rows.append(("Artifact", str(release.artifact.emulated)))
    return Table("Machine of the measurements", ("", ""), tuple(rows))


def span(estimate: Estimate, form: Callable[[float], str]) -> str:
    """Both ends of an interval, or a dash."""
    return f"{form(estimate.interval.low)} to {form(estimate.interval.high)}" if estimate.interval else "–"


_LONG = 1e7  # wider than a tile of the report


def number(value: float, digits: int = 3) -> str:
    """`digits` significant digits, all digits of whole numbers: 0.0229, 22.5, 1,204. From ten million: 1.23e+11."""
    if abs(value) >= _LONG and math.isfinite(value):
        return f"{value:.{digits}g}".replace("-", "−")
    if not math.isfinite(value):
        return figure(value)
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 6)}f}".replace("-", "−")


def percent(share: float) -> str:
    """A share as a percentage: 0.172 is 17.2 %."""
    return f"{100 * share:.1f} %" if math.isfinite(share) else figure(share)


def points(share: float, *, signed: bool = False) -> str:
    """A difference of shares in percentage points; `signed` adds a plus sign."""
    sign = "+" if signed else ""
    return f"{100 * share:{sign}z.1f}".replace("-", "−") if math.isfinite(share) else figure(share)


def percent_change(ratio: float) -> str:
    """A ratio as a change: 0.43 is −57 %."""
    return f"{100 * (ratio - 1):+.0f} %".replace("-", "−") if math.isfinite(ratio) else figure(ratio)


def ratio(top: float, bottom: float) -> str:
    """×1.23; a dash for a division by zero."""
    return f"×{number(top / bottom)}" if bottom else "–"


def size(count: int) -> str:
    """Bytes in binary units."""
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count >= size:
            return f"{number(count / size)} {unit}"
    return f"{count} bytes"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def p_value(value: float) -> str:
    """Three decimals."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def sentence(text: str) -> str:
    """Capital first, full stop last."""
    return text[:1].upper() + text[1:] + "."
