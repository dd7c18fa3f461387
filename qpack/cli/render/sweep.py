"""`qpack sweep`."""

from __future__ import annotations

import sys
from dataclasses import replace

from qpack.cli.render.ranking import as_data, ranking
from qpack.cli.render.text import emit
from qpack.core.errors import QpackError
from qpack.core.problems import Problem
from qpack.pipeline.sweep import NOT_BUILT, Point


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
            {"settings": name, "code": e.code.name, "error": e.what, "problems": [p.as_json() for p in e.problems]}
            for name, e in bad.items()
        ]
        emit({**(as_data(found) if found else {"rows": []}), "not_built": failed})
        return
    if found:
        ranking(found)
    for name, error in bad.items() if found else ():
        print(f"\nnot built: {name}: {'; '.join(p.text for p in error.problems) or error.what}")


def unbuilt(points: tuple[Point, ...]) -> QpackError | None:
    """The error that a sweep ends with: of the kind of the first combination that wasn't built; None if all were."""
    bad = [(point, point.error) for point in points if point.error is not None]
    if not bad:
        return None
    problems = tuple(
        replace(problem, message=f"{point.name}: {problem.message}")
        for point, error in bad
        for problem in (error.problems or (Problem(NOT_BUILT, error.what, hint=error.hint),))
    )
    others = "; the others are in the store" if len(bad) < len(points) else ""
    what = f"{len(bad)} of {len(points)} combinations could not be built{others}"
    return type(bad[0][1])(NOT_BUILT, what, log=bad[0][1].log, problems=problems)
