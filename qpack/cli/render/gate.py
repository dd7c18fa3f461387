"""`qpack gate`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from evals.gates.missed import GATE_FAILED, GATE_UNDECIDED
from evals.gates.missed import missed as missed_gates
from qpack.cli.render.text import emit, number, table
from qpack.core import terminal
from qpack.core.errors import GateFailed, GateUndecided, RegistryError
from qpack.core.problems import FILE_SYSTEM, Location
from qpack.core.records import Estimate, Release, Verdict
from qpack.recipe.gate_policy import Bounds


def written(release: Release, verdict: Verdict, name: str, *, junit: Path | None, markdown: Path | None) -> None:
    """Write the files that were asked for, and on GitHub Actions the step's summary and a warning for each anomaly."""
    from evals.report import junit as xml
    from evals.report import markdown as text

    if junit:
        _write(junit, xml.render(release, verdict, name), "--junit")
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    page = text.render(release, verdict, name) if markdown or summary else ""
    if markdown:
        _write(markdown, page, "--markdown")
    if summary:
        _write(Path(summary), page, "GITHUB_STEP_SUMMARY", append=True)
    if terminal.on_github():
        for anomaly in verdict.anomalies:
            terminal.workflow(sys.stderr, "warning", anomaly, title="qpack: anomaly")


def judged(verdict: Verdict, name: str, *, as_json: bool) -> None:
    """The verdict, gate by gate."""
    if as_json:
        emit({"evidence": name, "verdict": verdict.model_dump(mode="json")})
        return
    print(f"{name}: {verdict.outcome}\n")
    table(
        ("gate", "bound", "figure", "interval", "verdict"),
        (
            (
                g.gate,
                f"{'<=' if g.kind == 'max' else '>='} {g.bound:g}",
                number(g.estimate.value),
                _span(g.estimate),
                g.outcome,
            )
            for g in verdict.gates
        ),
    )
    for anomaly in verdict.anomalies:
        print(f"\nanomaly: {anomaly}")


def refusal(verdict: Verdict, bounds: Bounds) -> GateFailed | GateUndecided | None:
    """The error that a verdict ends with; None for a pass. Its problems are at the lines of the bounds."""
    missed = missed_gates(verdict, lambda gate: bounds.where.get(gate, Location()))
    if verdict.outcome == "fail":
        return GateFailed(GATE_FAILED, "the evidence does not meet its gates", problems=missed)
    if verdict.outcome == "undecided":
        return GateUndecided(
            GATE_UNDECIDED,
            "the samples don't decide",
            hint="Evaluate more samples, or loosen the bound.",
            problems=missed,
        )
    return None


def _span(estimate: Estimate) -> str:
    return f"[{number(estimate.interval.low)}, {number(estimate.interval.high)}]" if estimate.interval else ""


def _write(path: Path, text: str, option: str, *, append: bool = False) -> None:
    try:
        with path.open("a" if append else "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RegistryError(
            FILE_SYSTEM, f"{path}: {error.strerror}", hint=f"Name another file with {option}."
        ) from error
