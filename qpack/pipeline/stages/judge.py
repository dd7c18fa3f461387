"""Artifact against baseline, held against the recipe's gates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evals.comparison.compare import compare
from evals.comparison.verdicts import verdict
from qpack.core.records import Judged
from qpack.pipeline import evidence
from qpack.pipeline.needed import need

if TYPE_CHECKING:
    from qpack.pipeline.state import Build


def make(build: Build) -> Judged:
    """The comparison and its verdict, from what was measured. Raises EvaluateError."""
    before, after = evidence.baseline_evidence(build), evidence.artifact_evidence(build)
    comparison = compare(
        evidence.measured(need(build.baseline), before),
        evidence.measured(need(build.artifact), after),
        interleaved=evidence.interleaved(build),
        seed=build.plan.recipe.evaluate.seed,
    )
    found = verdict(comparison, before, after, build.plan.recipe.gates.bounds())
    return Judged(comparison=comparison, verdict=found, contamination=evidence.overlaps(build))
