"""The report's plots as inline SVG: no files, no network, the same bytes for the same release.

Colours are CSS variables of the page, so plots follow its light and dark theme. Every plot has a title and a
description with its numbers for screen readers; the page has a table below each.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from io import StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from evals.report import layer_errors
from qpack.core import side_by_side
from qpack.core.records import Estimate, GateResult, Release
from qpack.core.side_by_side import mean_rate, run_median
from qpack.core.speed import Latency

# Placeholders; `_svg` replaces them by CSS variables of the page.
_INK, _MUTED, _LINE = "#1b1f25", "#5c6470", "#d9dde3"
_BASELINE, _ARTIFACT, _FAIL = "#78818d", "#1f5fc4", "#b3261e"
_VARIABLES = {
    _INK: "--ink",
    _MUTED: "--muted",
    _LINE: "--line",
    _BASELINE: "--baseline",
    _ARTIFACT: "--artifact",
    _FAIL: "--fail",
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "qpack",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": _INK,
    "text.parse_math": False,  # a task's name may contain $
    "axes.labelcolor": _MUTED,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": _INK,
    "axes.edgecolor": _LINE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": _LINE,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}
_MARKS = (("baseline", _BASELINE, "o"), ("artifact", _ARTIFACT, "D"))
MIB = 1024**2


def tradeoff(release: Release) -> str:
    """Mean accuracy over weights, server memory and speed (unless other work disturbed it, or the artifact was
    emulated): two points per panel.
    """
    tasks = release.comparison.tasks
    accuracy = [100 * _mean([t.baseline for t in tasks]), 100 * _mean([t.artifact for t in tasks])]
    sizes = (("Weights", side_by_side.weights_bytes(release)), ("Server memory", side_by_side.memory_bytes(release)))
    panels: list[tuple[str, str, list[float]]] = [
        (name, "MiB, less is better", [size.baseline / MIB, size.artifact / MIB]) for name, size in sizes if size
    ]
    if (speeds := side_by_side.throughput(release)) and not side_by_side.shared_machine(release):
        speed = speeds[-1]
        rates = [speed.baseline, speed.artifact]
        panels.append((f"Speed, {clients(speed.concurrency)}", "output tokens/s, more is better", rates))

    def draw(fig: Figure) -> None:
        axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        middle, spread = _mean(accuracy), max(5.0, 1.6 * abs(accuracy[0] - accuracy[1]))
        for axis, (title, label, values) in zip(axes, panels, strict=True):
            axis.plot(values, accuracy, color=_LINE, lw=1.5, zorder=1)
            for (name, colour, mark), x, y, side in zip(_MARKS, values, accuracy, (1, -1), strict=True):
                axis.plot([x], [y], mark, color=colour, ms=9, zorder=2)
                above = side if accuracy[0] >= accuracy[1] else -side
                text = f"{name}\n{x:,.0f}" if above > 0 else f"{x:,.0f}\n{name}"
                at = (0, 11 * above)
                va = "bottom" if above > 0 else "top"
                style: dict[str, Any] = {"ha": "center", "va": va, "color": colour, "fontsize": 9}
                axis.annotate(text, (x, y), at, textcoords="offset points", **style)
            axis.set(title=title, xlabel=label, xlim=(0, 1.3 * max(values)), ylim=(middle - spread, middle + spread))
            axis.xaxis.set_major_locator(MaxNLocator(3))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
            axis.grid(axis="both", lw=0.6)
        axes[0].set_ylabel("mean accuracy, %")

    said = "; ".join(f"{title} {b:,.0f} to {a:,.0f} ({label})" for title, label, (b, a) in panels)
    text = f"Baseline to artifact: accuracy {accuracy[0]:.1f} % to {accuracy[1]:.1f} %; {said}."
    return _svg("tradeoff", "Accuracy over memory and speed", text, (9.9, 3.3), draw)


def _by_row(axis: Axes, labels: Sequence[str], about: str) -> None:
    """Label the rows of a plot, the first at the top, and say what its horizontal axis is."""
    axis.set_yticks(range(len(labels)), list(reversed(labels)), color=_INK)
    axis.set(ylim=(-0.6, len(labels) - 0.4), xlabel=about)
    axis.grid(axis="x", lw=0.6)
    axis.tick_params(axis="y", length=0)


def tasks(release: Release) -> str:
    """Accuracy lost per task and on average, in points, with intervals (forest plot)."""
    rows = [(t.task, t.drop) for t in release.comparison.tasks]
    rows.append(("mean over tasks", release.comparison.accuracy_drop))
    bounds = {r.gate.partition("[")[0]: r.bound for r in release.verdict.gates}

    def draw(fig: Figure) -> None:
        axis = fig.subplots()
        for y, (name, drop) in enumerate(reversed(rows)):
            total = name == "mean over tasks"
            if drop.interval and math.isfinite(drop.interval.low) and math.isfinite(drop.interval.high):
                ends = [100 * drop.interval.low, 100 * drop.interval.high]
                axis.plot(ends, [y, y], color=_ARTIFACT, lw=3.5 if total else 2)
            axis.plot([100 * drop.value], [y], "D" if total else "o", color=_ARTIFACT, ms=9 if total else 7)
            gate = "accuracy_drop" if total else "task_accuracy_drop"
            if gate in bounds:
                axis.plot([100 * bounds[gate]] * 2, [y - 0.38, y + 0.38], color=_FAIL, lw=2)
        axis.axvline(0, color=_MUTED, lw=1)
        _by_row(axis, [name for name, _ in rows], "accuracy lost, percentage points (right of 0 is worse)")
        if bounds.keys() & {"accuracy_drop", "task_accuracy_drop"}:
            axis.plot([], [], color=_FAIL, lw=2, label="gate")
            axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=9, borderaxespad=0)

    text = "; ".join(f"{name} {_points(drop)}" for name, drop in rows)
    size = (9.9, 1.1 + 0.42 * len(rows))
    return _svg("tasks", "Accuracy lost by task", f"Points lost, with intervals: {text}.", size, draw)


def windows(release: Release) -> str:
    """Perplexity per window of held-out text, artifact over baseline, and the sorted ratios."""
    both = zip(release.baseline.language.windows, release.artifact.language.windows, strict=True)
    points = [(math.exp(min(b.nll / b.tokens, 50)), math.exp(min(a.nll / a.tokens, 50))) for b, a in both if b.tokens]
    ratios = sorted(a / b for b, a in points)
    whole = release.comparison.perplexity_ratio
    bound = next((r.bound for r in release.verdict.gates if r.gate == "perplexity_ratio"), None)

    def draw(fig: Figure) -> None:
        axis, sides = fig.subplots(1, 2, width_ratios=(1, 1.25))
        every = [x for point in points for x in point if math.isfinite(x)] or [1.0]
        ends = (min(every) / 1.15, max(every) * 1.15)
        axis.plot(ends, ends, color=_MUTED, lw=1, ls=(0, (4, 3)))
        axis.plot([b for b, _ in points], [a for _, a in points], "D", color=_ARTIFACT, ms=4.5, alpha=0.75)
        axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal", title="Each window")
        axis.set(xlabel="baseline perplexity", ylabel="artifact perplexity")
        note: dict[str, Any] = {"xycoords": "axes fraction", "va": "top", "color": _MUTED, "fontsize": 9}
        axis.annotate("the artifact is worse", (0.04, 0.96), **note)
        ticks = _log_ticks(*ends)
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(FixedLocator(ticks))
            side.set_minor_locator(NullLocator())
            side.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.grid(lw=0.6)
        if whole.interval and math.isfinite(whole.interval.low) and math.isfinite(whole.interval.high):
            sides.axhspan(whole.interval.low, whole.interval.high, color=_ARTIFACT, alpha=0.15, lw=0)
        sides.axhline(1, color=_MUTED, lw=1, ls=(0, (4, 3)))
        sides.plot(range(1, len(ratios) + 1), ratios, "D", color=_ARTIFACT, ms=4, alpha=0.75, label="each window")
        if math.isfinite(whole.value):
            sides.axhline(whole.value, color=_ARTIFACT, lw=1.8, label="all text, with interval")
        if bound is not None:
            sides.axhline(bound, color=_FAIL, lw=1.8, label="gate")
        sides.set(title="Artifact perplexity over baseline's", xlabel="windows, sorted by ratio")
        sides.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        sides.margins(y=0.12)
        sides.grid(axis="y", lw=0.6)
        sides.legend(loc="upper left", bbox_to_anchor=(0, -0.18), ncols=3, fontsize=9, borderaxespad=0)

    worse = sum(a > b for b, a in points)
    text = f"Of {len(points)} windows, {worse} have a higher perplexity under the artifact."
    return _svg("windows", "Perplexity of each window of text", text, (9.9, 3.9), draw)


def latency(release: Release) -> str:
    """Time to first token, time between tokens, and throughput, by number of clients."""
    models = (release.baseline.latency, release.artifact.latency)
    across = [level.concurrency for level in models[0].levels]

    def draw(fig: Figure) -> None:
        first, between, speed = fig.subplots(1, 3)
        for latency, (name, colour, mark) in zip(models, _MARKS, strict=True):
            for axis, metric in ((first, "ttft_ms"), (between, "inter_token_ms")):
                for percentile, dashes in (("p50", "-"), ("p95", (0, (3, 2)))):
                    values = [run_median(level, metric, percentile) for level in latency.levels]
                    label = f"{name} {percentile}"
                    axis.plot(across, values, mark, ls=dashes, color=colour, ms=5, lw=1.8, label=label)
            means = [mean_rate(level) for level in latency.levels]
            speed.plot(across, means, color=colour, lw=1.8)
            dots = [(level.concurrency, r.output_tokens_per_second) for level in latency.levels for r in level.runs]
            speed.plot([x for x, _ in dots], [y for _, y in dots], mark, color=colour, ms=4.5, alpha=0.7)
        titles = ("Time to first token, ms", "Time between tokens, ms", "Output tokens/s, each run")
        for axis, title in zip((first, between, speed), titles, strict=True):
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_locator(FixedLocator(across))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axis.set(title=title, xlabel="clients at once")
            axis.set_ylim(bottom=0)
            axis.margins(x=0.08)
            axis.grid(axis="y", lw=0.6)
        handles, labels = first.get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)

    return _svg("latency", "Latency and throughput by concurrency", _speed_text(models), (9.9, 3.5), draw)


def turns(release: Release) -> str:
    """The throughput ratio of each interleaved round, by number of clients."""
    levels = release.interleaved.levels if release.interleaved else ()
    speeds = {speed.concurrency: speed.throughput for speed in release.comparison.speed}
    rows = [
        (level.concurrency, [r.subject.output_tokens_per_second / r.reference.output_tokens_per_second for r in rounds])
        for level in levels
        if (rounds := [r for r in level.rounds if r.reference.output_tokens_per_second > 0])
    ]
    floor = next((r.bound for r in release.verdict.gates if r.gate.startswith("throughput_ratio")), None)

    def draw(fig: Figure) -> None:
        axis = fig.subplots()
        for y, (concurrency, ratios) in enumerate(reversed(rows)):
            found = speeds.get(concurrency)
            if found and found.interval:
                axis.plot([found.interval.low, found.interval.high], [y, y], color=_ARTIFACT, lw=3.5)
            axis.plot(ratios, [y] * len(ratios), "o", color=_ARTIFACT, ms=5, alpha=0.45)
            if found:
                axis.plot([found.value], [y], "D", color=_ARTIFACT, ms=9)
            if floor is not None:
                axis.plot([floor, floor], [y - 0.38, y + 0.38], color=_FAIL, lw=2)
        axis.axvline(1, color=_MUTED, lw=1, ls=(0, (4, 3)))
        labels = [clients(number) for number, _ in rows]
        _by_row(axis, labels, "output tokens/s, artifact over baseline (right of 1 is faster)")

    text = "; ".join(f"{clients(number)} {', '.join(f'{ratio:.3f}' for ratio in ratios)}" for number, ratios in rows)
    size = (9.9, 1.0 + 0.42 * len(rows))
    return _svg("turns", "Throughput ratio in each round", f"Rounds: {text}.", size, draw)


def stages(release: Release) -> str:
    """Seconds per stage as bars. Reused stages are pale."""
    total = sum(s.seconds for s in release.stages) or 1.0

    def draw(fig: Figure) -> None:
        axis = fig.subplots()
        for y, stage in enumerate(reversed(release.stages)):
            axis.barh(y, stage.seconds, height=0.62, color=_LINE if stage.reused else _ARTIFACT)
            kept = ", reused" if stage.reused else ""
            label = f"{stage.seconds:,.1f} s, {100 * stage.seconds / total:.1f} %{kept}"
            at: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points"}
            axis.annotate(label, (stage.seconds, y), **at, va="center", color=_MUTED, fontsize=9)
        axis.set_yticks(range(len(release.stages)), [s.stage for s in reversed(release.stages)], color=_INK)
        axis.set(xlabel="seconds", xlim=(0, 1.35 * max((s.seconds for s in release.stages), default=1.0) or 1.0))
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", lw=0.6)

    text = "; ".join(f"{s.stage} {s.seconds:.1f} s" for s in release.stages)
    return _svg("stages", "Time of each stage", f"{text}.", (9.9, 0.9 + 0.34 * len(release.stages)), draw)


def layer_error_plot(release: Release) -> str:
    """Error per layer input by depth, rounded and as stored: a panel per kind of input."""
    every = layer_errors.measured(release)
    kinds = layer_errors.by_kind(every)
    marked = {(site.layer, site.site) for site in layer_errors.worst(every)}

    def draw(fig: Figure) -> None:
        across = min(len(kinds), 4)
        panels = fig.subplots(-(-len(kinds) // across), across, sharex=True, sharey=True, squeeze=False)
        for axis in panels.flat[len(kinds) :]:
            axis.set_visible(False)
        for axis, (kind, depths) in zip(panels.flat, sorted(kinds.items()), strict=False):
            at = sorted(depths)
            for name, colour, mark, values in (
                ("rounded", _BASELINE, "o", [100 * (depths[i].error_before or math.nan) for i in at]),
                ("stored", _ARTIFACT, "D", [100 * (depths[i].error_after or math.nan) for i in at]),
            ):
                axis.plot(at, values, color=colour, marker=mark, ms=3.5, lw=1.2, label=name)
            hurt = [i for i in at if (depths[i].layer, depths[i].site) in marked]
            values = [100 * (depths[i].error_after or math.nan) for i in hurt]
            axis.plot(hurt, values, "o", mfc="none", mec=_FAIL, ms=9, mew=1.6, label="ten largest")
            axis.set(title=kind, yscale="log", xlabel="decoder layer")
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.grid(axis="y", lw=0.6)
        panels[0][0].set_ylabel("error, % of output")
        lines, names = panels[0][0].get_legend_handles_labels()
        fig.legend(lines, names, loc="outside upper right", ncols=3, fontsize=9)

    text = "; ".join(
        f"{site.layer} {site.site} {100 * (site.error_after or 0):.2g} %" for site in layer_errors.worst(every)
    )
    rows = -(-len(kinds) // 4)
    return _svg("layer-errors", "Error per layer", f"Largest as stored: {text}.", (9.9, 0.6 + 2.5 * rows), draw)


def gate_strip(result: GateResult, width: int = 132, height: int = 24) -> str:
    """One gate: figure, interval and bound, with the passing side tinted. Decoration of a table row."""
    value, interval = result.estimate.value, result.estimate.interval
    ends = [interval.low, interval.high] if interval else []
    known = [x for x in (value, result.bound, *ends) if math.isfinite(x)]
    least, most = min(known), max(known)
    margin = 0.18 * (most - least) or 0.1 * abs(most) or 1.0
    least, most = least - margin, most + margin

    def at(x: float) -> float:
        return round(width * min(1.0, max(0.0, (x - least) / (most - least))), 1)

    bound, middle = at(result.bound), height / 2
    left, right = (0.0, bound) if result.kind == "max" else (bound, float(width))
    parts = [
        f'<rect class="zone" x="{left}" y="3" width="{round(right - left, 1)}" height="{height - 6}" rx="2"/>',
        f'<line class="bound" x1="{bound}" x2="{bound}" y1="1" y2="{height - 1}"/>',
    ]
    if len(ends) == 2 and not any(map(math.isnan, ends)):
        parts.append(f'<line class="reach" x1="{at(ends[0])}" x2="{at(ends[1])}" y1="{middle}" y2="{middle}"/>')
    if math.isfinite(value):
        parts.append(f'<circle class="mark" cx="{at(value)}" cy="{middle}" r="4"/>')
    view = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg class="strip {result.outcome}" {view} aria-hidden="true" focusable="false">{"".join(parts)}</svg>'


def _svg(name: str, title: str, text: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """Draw, and turn matplotlib's file into an element of the page: own ids, no fixed size, title, description."""
    with mpl.rc_context(_STYLE):
        fig = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(fig)
        draw(fig)
        out = StringIO()
        with warnings.catch_warnings():
            # The page's own font draws the texts: glyphs missing in this font don't matter.
            warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
            fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = out.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    view = re.search(r'viewBox="([^"]+)"', svg)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    return (
        f'<svg role="img" aria-labelledby="{name}-title {name}-desc" viewBox="{view[1] if view else ""}" '
        f'style="max-width:{size[0] * 96:.0f}px">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(text)}</desc>{body}</svg>'
    )


def _speed_text(models: Sequence[Latency]) -> str:
    said = []
    for base, other in zip(models[0].levels, models[1].levels, strict=True):
        rates = [mean_rate(level) for level in (base, other)]
        first = [run_median(level, "ttft_ms", "p50") for level in (base, other)]
        said.append(
            f"{clients(base.concurrency)}: output tokens/s {rates[0]:,.1f} to {rates[1]:,.1f}, "
            f"first token {first[0]:.0f} to {first[1]:.0f} ms"
        )
    return f"Baseline to artifact, separate runs. {'; '.join(said)}."


def _points(drop: Estimate) -> str:
    text = f"{100 * drop.value:.1f}"
    return text + (f" [{100 * drop.interval.low:.1f}, {100 * drop.interval.high:.1f}]" if drop.interval else "")


def _log_ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two ends."""
    start, end = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(x / 10 for x in range(10, 100))):
        ticks = [step * 10**power for power in range(start, end + 1) for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            return ticks[:: math.ceil(len(ticks) / 7)]
    return ticks


def clients(number: int) -> str:
    """1 client, 16 clients."""
    return "1 client" if number == 1 else f"{number} clients"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
