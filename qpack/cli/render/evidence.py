"""`qpack gate`, `compare` and `sweep`: verdicts, releases side by side, combinations."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

from evals.gates.gates import figure
from evals.report.release_comparison import ReleaseComparison, ReleaseRow
from qpack.cli.render.text import emit, table
from qpack.core import terminal
from qpack.core.errors import GateFailed, GateUndecided, Problem, QpackError, RegistryError
from qpack.core.records import Estimate, Release, Verdict
from qpack.pipeline.sweep import Point
from qpack.recipe.gate_policy import Bounds

_MIB = 2**20


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
            terminal.workflow(sys.stderr, "warning", anomaly, title="qpack: too good to be true?")


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
                figure(g.estimate.value),
                _span(g.estimate),
                g.outcome,
            )
            for g in verdict.gates
        ),
    )
    for anomaly in verdict.anomalies:
        print(f"\ntoo good to be true? {anomaly}")


def refusal(verdict: Verdict, bounds: Bounds) -> GateFailed | GateUndecided | None:
    """The error that a verdict ends with; None for a pass. Its problems are at the lines of the bounds."""
    missed = tuple(
        Problem(f"{gate.gate}: {gate.why}", bounds.where.get(gate.gate.partition("[")[0], ""))
        for gate in verdict.gates
        if gate.outcome == verdict.outcome
    )
    if verdict.outcome == "fail":
        return GateFailed("the evidence does not meet its gates", problems=missed)
    if verdict.outcome == "undecided":
        return GateUndecided(
            "the samples don't decide", hint="Evaluate more samples, or loosen the bound.", problems=missed
        )
    return None


def compared(found: ReleaseComparison, *, as_json: bool) -> None:
    """Releases side by side."""
    if as_json:
        emit(_plain(found))
        return
    ranking(found)
    if found.inputs:
        print("\nWhat differs in the inputs:\n")
        table(("", *(row.name for row in found.rows)), ((name, *values) for name, values in found.inputs.items()))


def ranking(found: ReleaseComparison) -> None:
    """The figures of each and which of them are on the front."""
    rows = found.rows
    speed = next((row.concurrency for row in rows if row.tokens_per_second is not None), None)
    columns: list[tuple[str, list[str]]] = [
        ("", [row.name for row in rows]),
        ("front", ["*" if row.on_front else "" for row in rows]),
        ("gates", [row.outcome for row in rows]),
        ("accuracy", [f"{row.accuracy:.4f}" for row in rows]),
        ("change from its baseline", [_signed(row.accuracy_drop) for row in rows]),
        ("change from the first", [_signed(row.against_first) if row.against_first else "" for row in rows]),
        ("perplexity", [f"{row.perplexity:.3f}" if row.perplexity is not None else "" for row in rows]),
        ("KL, nats", [figure(row.kl_divergence.value) if row.kl_divergence else "" for row in rows]),
        ("weights, MiB", [f"{row.weights_bytes / _MIB:,.1f}" for row in rows]),
        ("memory, MiB", [f"{row.memory_bytes / _MIB:,.1f}" if row.memory_bytes is not None else "" for row in rows]),
        (
            f"tok/s, {speed} at once",
            [f"{row.tokens_per_second:.1f}" if row.tokens_per_second is not None else "" for row in rows],
        ),
    ]
    columns.append(("over its baseline", [_speed(row) for row in rows]))
    shown = [(head, cells) for head, cells in columns if any(cells)]
    table([head for head, _ in shown], list(zip(*(cells for _, cells in shown), strict=True)))
    print(f"\n* on the Pareto front of {', '.join(found.weighed)}: no other is at least as good in all of them.")
    print("Changes in accuracy are on the same items, with 90 % intervals.")
    if speed is not None:
        alone = [row.name for row in rows if not row.in_turn]
        beside = f", and so was the baseline of {', '.join(alone)}" if alone else ""
        print(
            f"Tokens per second were measured one release after the other{beside}; other load on the machine affects"
            " them."
        )
    for why in found.left_out:
        print(f"left out: {why}")


def sweeping(number: int, total: int, point: Point | tuple[str, ...]) -> None:
    """A combination begins, or has ended."""
    if isinstance(point, tuple):
        print(f"-- {number}/{total}: {' '.join(point)}", file=sys.stderr, flush=True)
    elif point.error is not None:
        print(
            f"-- {number}/{total}: {point.error.title}: {point.error.what}; continuing with the next", file=sys.stderr
        )


def swept(points: tuple[Point, ...], *, as_json: bool) -> None:
    """The combinations that were built, side by side, and the others with their reasons."""
    from evals.report import release_comparison

    built = {point.name: point.release for point in points if point.release is not None}
    found = release_comparison.compare(built) if built else None
    bad = {point.name: point.error for point in points if point.error is not None}
    if as_json:
        failed = [
            {"settings": name, "error": e.what, "problems": [str(p) for p in e.problems]} for name, e in bad.items()
        ]
        emit({**(_plain(found) if found else {"rows": []}), "not_built": failed})
        return
    if found:
        ranking(found)
    for name, error in bad.items():
        print(f"\nnot built: {name}: {'; '.join(str(p) for p in error.problems) or error.what}")


def unbuilt(points: tuple[Point, ...]) -> QpackError | None:
    """The error that a sweep ends with: of the kind of the first combination that wasn't built; None if all were."""
    bad = [(point, point.error) for point in points if point.error is not None]
    if not bad:
        return None
    problems = tuple(
        Problem(f"{point.name}: {problem.what}", problem.where, problem.hint)
        for point, error in bad
        for problem in (error.problems or (Problem(error.what, hint=error.hint),))
    )
    what = f"{len(bad)} of {len(points)} combinations could not be built; the others are in the store"
    return type(bad[0][1])(what, log=bad[0][1].log, problems=problems)


def _speed(row: ReleaseRow) -> str:
    """The ratio, and the baseline's tokens a second that it is over."""
    if row.speed_ratio is None or row.baseline_tokens_per_second is None:
        return ""
    return f"{_times(row.speed_ratio)} of {row.baseline_tokens_per_second:.1f}"


def _plain(found: ReleaseComparison) -> dict[str, Any]:
    rows = [
        {
            field.name: value.model_dump(mode="json") if isinstance(value, Estimate) else value
            for field in dataclasses.fields(row)
            for value in (getattr(row, field.name),)
        }
        for row in found.rows
    ]
    return {"rows": rows, "weighed": found.weighed, "left_out": found.left_out, "inputs": dict(found.inputs)}


def _span(estimate: Estimate) -> str:
    return f"[{figure(estimate.interval.low)}, {figure(estimate.interval.high)}]" if estimate.interval else ""


def _signed(drop: Estimate) -> str:
    """A drop as the change that it is: negative is worse."""
    text = f"{-drop.value:+z.4f}"
    return text if drop.interval is None else f"{text} [{-drop.interval.high:+z.4f}, {-drop.interval.low:+z.4f}]"


def _times(ratio: Estimate) -> str:
    text = f"x{ratio.value:.3f}"
    return text if ratio.interval is None else f"{text} [{ratio.interval.low:.3f}, {ratio.interval.high:.3f}]"


def _write(path: Path, text: str, option: str, *, append: bool = False) -> None:
    try:
        with path.open("a" if append else "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RegistryError(f"{path}: {error.strerror}", hint=f"Name another file with {option}.") from error
