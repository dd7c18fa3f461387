"""A grid of recipes on one store: every combination of the values that vary is built up to its verdict.

Nothing is published. Stages that combinations share (the source, the held-out text, the baseline's evidence) are run
once, and a stopped sweep resumes, because the store keeps every stage by its key.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qpack.core.errors import Interrupted, QpackError, UsageError
from qpack.core.problems import INVALID_OPTION, Code, Location, Problem
from qpack.core.records import Release
from qpack.pipeline import plan, release_records
from qpack.pipeline.context import Context
from qpack.pipeline.run import run
from qpack.pipeline.stages import judge
from qpack.pipeline.stages.catalog import until
from qpack.pipeline.state import Build
from qpack.recipe.recipe_file import load

NOT_BUILT = Code("not-built", "A combination of a sweep could not be built.")

TO_THE_VERDICT = until(judge.STAGE)


@dataclass(frozen=True)
class Grid:
    """What a sweep builds: a recipe, with settings that are the same for every combination, and the values that vary,
    as `KEY=VALUE,VALUE`.
    """

    recipe: Path
    vary: Sequence[str]
    settings: Sequence[str] = ()


@dataclass(frozen=True)
class Point:
    """One combination: `settings` as `--set` takes them, and its release or its error."""

    settings: tuple[str, ...]
    release: Release | None = None
    error: QpackError | None = None

    @property
    def name(self) -> str:
        """The settings in a line."""
        return " ".join(self.settings)


def grid(vary: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Every combination of `KEY=VALUE,VALUE` as tuples of `KEY=VALUE`, the last key varying fastest.

    A comma inside brackets or quotes belongs to its value. Raises UsageError for other texts, a key that is
    given twice, or a value that is.
    """
    axes: list[list[str]] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for text in vary:
        key, equals, values = text.partition("=")
        found = _split(values)
        if not equals or not key.strip() or not all(found):
            problems.append(_wrong(text, "expected key=value,value"))
        elif key in seen or len(set(found)) < len(found):
            problems.append(_wrong(text, f"{'the key' if key in seen else 'a value'} is a duplicate"))
        else:
            axes.append([f"{key}={value}" for value in found])
        seen.add(key)
    if problems or not axes:
        hint = "For example --vary quantize.group_size=32,64."
        raise UsageError.of(problems or [replace(_wrong("", "no value to vary"), hint=hint)])
    return tuple(itertools.product(*axes))


def _wrong(given: str, message: str) -> Problem:
    return Problem(INVALID_OPTION, message, Location(option=f"--vary {given}".strip()))


def sweep(
    asked: Grid, context: Context, report: Callable[[int, int, Point | tuple[str, ...]], None]
) -> tuple[Point, ...]:
    """Build every combination up to its verdict, one after the other.

    A combination that can't be planned or built is a point with its error, and the sweep continues; only an
    interruption ends it. `report` gets each combination before and after. Raises RecipeError if the recipe itself can't
    be read.
    """
    load(asked.recipe, list(asked.settings))
    combinations = grid(asked.vary)
    points: list[Point] = []
    for number, combination in enumerate(combinations, 1):
        report(number, len(combinations), combination)
        points.append(_point(asked, combination, context))
        report(number, len(combinations), points[-1])
    return tuple(points)


def _point(asked: Grid, combination: tuple[str, ...], context: Context) -> Point:
    try:
        loaded = load(asked.recipe, [*asked.settings, *combination])
        planned = plan.make(loaded, context.store, thorough=True)
        build = Build(planned, context, allow_failed_gates=True)
        return Point(combination, release=release_records.release(run(build, TO_THE_VERDICT)))
    except Interrupted:
        raise
    except QpackError as error:
        return Point(combination, error=error)


def _split(values: str) -> list[str]:
    """`a,[b,c],"d,e"` at its outer commas."""
    parts, depth, quote, part = [], 0, "", ""
    for char in values:
        quote = "" if char == quote else char if not quote and char in "\"'" else quote
        if not quote:
            depth += (char in "[{") - (char in "]}")
        if char == "," and not depth and not quote:
            parts.append(part.strip())
            part = ""
        else:
            part += char
    return [*parts, part.strip()]
