"""Figures and verdict of a release, recomputed from its own evidence and recipe, for `verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpack.core import side_by_side
from qpack.core.errors import RegistryError
from qpack.core.records import Release
from qpack.recipe import gate_policy
from registry.lifecycle.verification import Judged

if TYPE_CHECKING:
    from evals.comparison.compare import Published


def rejudge(release: Release) -> Judged:
    """The figures and verdicts that differ. A damaged or hostile release raises nothing here."""
    # scipy: not loaded unless there is something to judge.
    from evals.comparison import recheck

    figures = recheck.figures(release, _seed(release), _published(release))
    if (beside := side_by_side.beside_native(release, whole=True)) is not None:
        figures += tuple(f"beside the stored source: {figure}" for figure in recheck.figures(beside, _seed(release)))
    try:
        bounds = gate_policy.of_release(release).values
    except RegistryError as error:
        return Judged(figures=figures, verdict=(error.what,))
    return Judged(figures=figures, verdict=recheck.verdict_of(release, bounds))


def _published(release: Release) -> Published | None:
    """The published scores that the recipe names; None without any. A hostile recipe names none."""
    from evals.comparison.compare import Published

    asked = release.recipe.get("evaluate")
    scores = asked.get("expect") if isinstance(asked, dict) else None
    tolerance = asked.get("expect_tolerance") if isinstance(asked, dict) else None
    if not isinstance(scores, dict) or not scores or not isinstance(tolerance, int | float):
        return None
    known = {str(task): float(score) for task, score in scores.items() if isinstance(score, int | float)}
    return Published(known, float(tolerance))


def _seed(release: Release) -> int:
    """The seed of the intervals' resamples: `evaluate.seed` of the recipe."""
    asked = release.recipe.get("evaluate")
    seed = asked.get("seed", 0) if isinstance(asked, dict) else 0
    return seed if type(seed) is int and 0 <= seed < 2**63 else 0
