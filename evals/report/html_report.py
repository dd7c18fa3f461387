"""The report: one self-contained HTML page about one build, without scripts.

`render` takes a `Release`, published or not: a build whose gates failed has a report too. Markup and texts are in
report.html.jinja, plots in plots.py, tables in tables.py; the verdict is here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2
import jinja2.sandbox
from markupsafe import Markup

from evals.gates import sanity
from evals.gates.gates import CANARY, CANARY_MEANING, GATES, figure
from evals.report import layer_errors, plots, speed_tables, tables, text_tables
from qpack.core import side_by_side
from qpack.core.records import GateResult, Outcome, Release

# Control characters, and those that change the direction of text: what is shown isn't what is there.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_MARKS: dict[Outcome, str] = {"pass": "✓ pass", "fail": "✗ fail", "undecided": "? undecided"}


@dataclass(frozen=True)
class Tile:
    """A headline figure."""

    name: str
    value: str
    change: str


@dataclass(frozen=True)
class GateRow:
    """A gate as text. `meaning` is on a gate's first row only; `missed` is for the list below the headline."""

    name: str
    meaning: str
    result: GateResult
    value: str
    interval: str
    bound: str
    mark: str
    strip: Markup
    missed: str


def render(release: Release, *, title: str | None = None) -> str:
    """The page as text. Pure: the same release gives the same bytes. `title` is the release's name unless given."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    comparison = release.comparison
    gates = _gate_rows(release)
    # Speeds of an emulated artifact are its twin's.
    measured = release.artifact.emulated is None
    page: str = environment.get_template("report.html.jinja").render(
        title=title or release.name,
        release=release,
        headline=headline(release),
        emulated="" if measured else str(release.artifact.emulated),
        gates=gates,
        missed=[row for row in gates if row.result.outcome != "pass"],
        tiles=_tiles(release),
        confidence=_confidence(release),
        plots={
            "tradeoff": _drawn(plots.tradeoff, release, bool(comparison.tasks)),
            "tasks": _drawn(plots.tasks, release, bool(comparison.tasks)),
            "windows": _drawn(plots.windows, release, bool(release.artifact.language.windows)),
            "latency": _drawn(plots.latency, release, measured and bool(release.artifact.latency.levels)),
            "turns": _drawn(
                plots.turns, release, measured and bool(release.interleaved and release.interleaved.levels)
            ),
            "stages": _drawn(plots.stages, release, bool(release.stages)),
            "layer_errors": _drawn(plots.layer_error_plot, release, bool(layer_errors.measured(release))),
        },
        tables={
            "tasks": tables.task_table(release),
            "text": tables.text_table(release),
            "domains": text_tables.domain_table(release),
            "gained": text_tables.gained_table(release),
            "generated": text_tables.generated_table(release),
            "needle": text_tables.needle_table(release),
            "worst": tables.worst_table(release),
            "latency": speed_tables.latency_table(release),
            "speed": speed_tables.speed_table(release),
            "tools": measured and speed_tables.tools_table(release),
            "speculative": release.drafting and speed_tables.speculative_table(release),
            "memory": tables.memory_table(release),
            "native": tables.native_table(release),
            "canary": release.artifact.proof and tables.canary_table(release.artifact.proof),
            "stages": tables.stage_table(release),
            "calibration": release.calibration and tables.calibration_table(release.calibration),
            "contamination": release.contamination and tables.contamination_table(release.contamination),
            "quantized": tables.quantized_table(release),
            "layer_errors": layer_errors.table(release),
            "source": tables.source_table(release),
            "hardware": tables.hardware_table(release),
        },
        replies=list(zip(release.baseline.canary.replies, release.artifact.canary.replies, strict=False)),
        continued=text_tables.continued(release),
        continuations=text_tables.continued_sentence(release),
        resolved=json.dumps(release.recipe, indent=2, ensure_ascii=False, default=str),
    )
    return _HIDDEN.sub("\N{REPLACEMENT CHARACTER}", page) + "\n"


def headline(release: Release) -> str:
    """The verdict in one line, with the number of gates."""
    gates, outcome = release.verdict.gates, release.verdict.outcome
    if not gates:
        return "No gates set"
    if outcome == "pass":
        return f"Passed all {len(gates)} gates" if len(gates) > 1 else "Passed its gate"
    count = sum(result.outcome == outcome for result in gates)
    return f"{'Failed' if outcome == 'fail' else 'Undecided'}: {count} of {len(gates)} gates"


def _gate_rows(release: Release) -> list[GateRow]:
    rows: list[GateRow] = []
    explained = set()
    for result in release.verdict.gates:
        name = result.gate.partition("[")[0]
        known = {CANARY: CANARY_MEANING, sanity.SANITY: sanity.MEANING, **{gate: GATES[gate].meaning for gate in GATES}}
        meaning = known.get(name, "") if name not in explained else ""
        explained.add(name)
        interval = result.estimate.interval
        rows.append(
            GateRow(
                name=result.gate,
                meaning=meaning,
                result=result,
                value=figure(result.estimate.value),
                interval=f"{figure(interval.low)} to {figure(interval.high)}" if interval else "",
                bound=("≤ " if result.kind == "max" else "≥ ") + figure(result.bound),
                mark=_MARKS[result.outcome],
                strip=Markup(plots.gate_strip(result)),
                missed=_missed(result),
            )
        )
    return rows


def _missed(result: GateResult) -> str:
    """A failed figure and by how much it misses its bound; else the gate's reason."""
    gap = result.estimate.value - result.bound
    side, limit = ("above", "ceiling") if result.kind == "max" else ("below", "floor")
    gap = gap if result.kind == "max" else -gap
    if (
        result.gate == CANARY
        or result.gate.startswith(sanity.SANITY)
        or result.outcome != "fail"
        or not math.isfinite(gap)
        or gap <= 0
        or result.estimate.samples <= 0
    ):
        return result.why
    share = f" ({100 * gap / abs(result.bound):.0f} %)" if result.bound else ""
    return f"{figure(result.estimate.value)} is {figure(gap)}{share} {side} the {limit} of {figure(result.bound)}."


def _tiles(release: Release) -> list[Tile]:
    c, weights, text = release.comparison, side_by_side.weights_bytes(release), side_by_side.perplexity(release)
    change, before = tables.percent_change(weights.ratio.value), tables.size(round(weights.baseline))
    tiles = []
    if c.recovery is not None and c.tasks:
        tiles.append(Tile("Recovery", tables.percent(c.recovery.value), tables.span(c.recovery, tables.percent)))
    tiles.append(Tile("Weights", tables.size(round(weights.artifact)), f"{change} from {before}"))
    if c.tasks:
        base, other = (sum(getattr(t, side) for t in c.tasks) / len(c.tasks) for side in ("baseline", "artifact"))
        change = f"{tables.points(-c.accuracy_drop.value, signed=True)} points from {tables.percent(base)}"
        tiles.append(Tile("Mean accuracy", tables.percent(other), change))
    change = f"×{tables.number(text.ratio.value)} of {tables.number(text.baseline)}"
    tiles.append(Tile("Perplexity", tables.number(text.artifact), change))
    if (speeds := side_by_side.throughput(release)) and not side_by_side.shared_machine(release):
        speed = speeds[-1]
        change = f"×{tables.number(speed.ratio.value)} of {tables.number(speed.baseline)}"
        name = f"Output tokens/s, {plots.clients(speed.concurrency)}"
        tiles.append(Tile(name, tables.number(speed.artifact), change))
    return tiles


def _confidence(release: Release) -> str:
    every = [release.comparison.accuracy_drop, release.comparison.perplexity_ratio, release.comparison.flip_rate]
    levels = {e.interval.confidence for e in every if e.interval}
    if not levels:
        return ""
    level = max(levels)
    both, one = f"{100 * level:.0f} %", f"{50 * (1 + level):.0f} %"
    return f"Intervals are two-sided {both}: each end is a one-sided {one} bound, which decides a gate."


def _drawn(draw: Callable[[Release], str], release: Release, there_is_data: bool) -> Markup | None:
    """A plot as markup; plots.py escapes all texts."""
    return Markup(draw(release)) if there_is_data else None
