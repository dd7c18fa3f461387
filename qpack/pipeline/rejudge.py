"""Figures and verdict of a release, recomputed from its own evidence and recipe, for `verify`."""

from __future__ import annotations

from qpack.core.errors import RegistryError
from qpack.core.records import Release
from qpack.recipe import gate_policy
from registry.lifecycle.verification import Judged


def rejudge(release: Release) -> Judged:
    """The figures and verdicts that differ. A damaged or hostile release raises nothing here."""
    # scipy: not loaded unless there is something to judge.
    from evals.comparison import recheck

    figures = recheck.figures(release, _seed(release))
    try:
        bounds = gate_policy.of_release(release).values
    except RegistryError as error:
        return Judged(figures=figures, verdict=(error.what,))
    return Judged(figures=figures, verdict=recheck.verdict_of(release, bounds))


def _seed(release: Release) -> int:
    """The seed of the intervals' resamples: `evaluate.seed` of the recipe."""
    asked = release.recipe.get("evaluate")
    seed = asked.get("seed", 0) if isinstance(asked, dict) else 0
    return seed if type(seed) is int and 0 <= seed < 2**63 else 0
