"""Claims about the artifact in plain transformers beside vLLM."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.comparison import recheck
from evals.comparison.compare import of_evidence
from evals.comparison.verdicts import verdict
from evals.gates.sanity import KERNELS
from evals.measure.cross_check import spread
from qpack.core.findings import CrossChecked
from qpack.core.records import Release
from tests.unit import evidence_samples as samples


def checked(release: Release, more: float) -> Release:
    """As if vLLM lost `more` nats a token over transformers, with a little noise."""
    windows = release.artifact.language.windows
    at = spread(len(windows), 12)
    nll = tuple(windows[i].nll - (more + 0.002 * (i % 3 - 1)) * windows[i].tokens for i in at)
    artifact = release.artifact.model_copy(update={"cross_check": CrossChecked(tool="t", windows=at, nll=nll)})
    c = release.comparison
    # Scores and text alone: the figures of the log-probabilities stay as they are.
    again = of_evidence(release.baseline, artifact, (c.kl_divergence, c.flip_rate), interleaved=release.interleaved)
    return release.model_copy(
        update={"artifact": artifact, "comparison": c.model_copy(update={"cross_check": again.cross_check})}
    )


def test_the_ratio_is_that_of_the_perplexities_on_the_windows_that_both_scored(tmp_path: Path) -> None:
    found = checked(samples.make_release(tmp_path), 0.1).comparison.cross_check
    assert found is not None
    assert found.samples == 12
    assert found.value == pytest.approx(math.exp(0.1), rel=0.01)


@pytest.mark.parametrize(("more", "fails"), [(0.0, False), (KERNELS - 0.02, False), (0.2, True), (-0.2, False)])
def test_a_kernel_that_loses_what_the_weights_hold_fails_the_verdict(tmp_path: Path, more: float, fails: bool) -> None:
    release = checked(samples.make_release(tmp_path), more)
    found = verdict(release.comparison, release.baseline, release.artifact, {"accuracy_drop": 0.5})
    assert ("sanity[artifact-kernels]" in {gate.gate for gate in found.gates}) is fails
    assert found.outcome == ("fail" if fails else "pass")


def test_verify_computes_it_again(tmp_path: Path) -> None:
    release = checked(samples.make_release(tmp_path), 0.2)
    assert not [each for each in recheck.figures(release, 0) if "cross_check" in each]
    hidden = release.model_copy(update={"comparison": release.comparison.model_copy(update={"cross_check": None})})
    assert [each for each in recheck.figures(hidden, 0) if "cross_check" in each]


@given(st.integers(0, 300), st.integers(1, 300))
def test_windows_are_spread_each_once(windows: int, wanted: int) -> None:
    found = spread(windows, wanted)
    assert len(found) == min(windows, wanted)
    assert list(found) == sorted(set(found))
    assert all(0 <= at < windows for at in found)
