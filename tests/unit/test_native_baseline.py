"""A quantized source as it is stored, as a second baseline: who may ask for it, what keys it has, where it is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import tests.unit.evidence_samples as samples
from evals.comparison.compare import MeasuredModel, compare
from evals.report import html_report, markdown
from evals.report.tables import native_table
from qpack.core import side_by_side
from qpack.core.records import Emulated, Native, Release
from qpack.pipeline.rejudge import rejudge
from quantize.checkpoint import unpack
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Request
from quantize.preflight import native
from quantize.schemes.schemes import TARGETS
from registry.release import card
from tests.unit.registry_examples import serving
from tests.unit.test_unpack import PACKED, source

ASKED = Request("gptq", "W8A8", None, (), 0.01, trust_remote_code=False)
FORM = "FP8 in blocks of 128 x 128"


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """A release whose source, stored in FP8, was measured too; in place of the stored form's log-probabilities, those
    of another draw of the source's.
    """
    made = samples.make_release(tmp_path)
    stored = samples.evidence(seed=3)
    files = samples.write_logprobs(tmp_path / "stored.npz", seed=3), tmp_path / "artifact.npz"
    found = compare(
        MeasuredModel(stored, files[0], samples.continuations()),
        MeasuredModel(made.artifact, files[1], samples.continuations(quantized=True)),
        interleaved=None,
    )
    return made.model_copy(update={"native": Native(form=FORM, evidence=stored, comparison=found)})


def packed() -> tuple[Source, Source]:
    """FP8 in blocks as it is stored, and unpacked."""
    stored = source(PACKED)
    found = unpack.unpacked(stored)
    assert found is not None
    return stored, found


def test_a_source_that_is_not_unpacked_has_one_baseline() -> None:
    _, plain = packed()
    plain = replace(plain, unpack=None)
    (problem,) = native.check(plain, plain, ASKED, "cpu", 1)
    assert (problem.code.name, problem.where.key) == ("no-native-baseline", ("evaluate", "native_baseline"))


def test_the_stored_form_needs_a_kernel_where_it_is_measured() -> None:
    stored, found = packed()
    refused = {target: native.check(stored, found, ASKED, target, 1) for target in TARGETS}
    assert [target for target, problems in refused.items() if problems] == ["cpu"]
    assert {problem.where.key for problem in refused["cpu"]} == {("evaluate", "native_baseline")}


def test_the_second_baseline_takes_the_first_ones_place_in_its_own_table(release: Release) -> None:
    assert release.native is not None
    beside = side_by_side.beside_native(release)
    assert beside is not None
    assert beside.baseline == release.native.evidence
    assert beside.artifact == release.artifact
    assert side_by_side.perplexity(beside).baseline == pytest.approx(release.native.comparison.perplexity_baseline)
    assert side_by_side.beside_native(release.model_copy(update={"native": None})) is None


def test_the_report_the_markdown_and_the_card_say_the_same_of_it(release: Release) -> None:
    found = native_table(release)
    assert found is not None
    assert release.native is not None
    figures = {row[0]: row[1:] for row in found.rows}
    perplexity = release.native.comparison.perplexity_baseline
    assert float(figures["Perplexity"][0]) == pytest.approx(perplexity, rel=1e-3)
    page, text = html_report.render(release), markdown.render(release, release.verdict, "m:1")
    told = card.render(release, serving(), license_text=False)
    for place in (page, text, told):
        assert FORM in place
    for row in found.rows:
        for cell in row[1:4]:
            assert cell in page
            assert cell in text
    assert f"{perplexity:.3f}" in told
    without = release.model_copy(update={"native": None})
    assert native_table(without) is None
    assert FORM not in html_report.render(without) + card.render(without, serving(), license_text=False)


def test_verification_computes_its_figures_again(release: Release) -> None:
    assert release.native is not None
    honest = rejudge(release).figures
    better = release.native.comparison.model_copy(update={"perplexity_artifact": 1.0})
    forged = release.model_copy(update={"native": release.native.model_copy(update={"comparison": better})})
    assert [one for one in rejudge(forged).figures if one not in honest] != []
    assert [one for one in honest if "stored source" in one] == []


def test_an_emulated_artifact_has_no_memory_and_no_speed_beside_the_stored_source(release: Release) -> None:
    emulated = Emulated(on="cpu", how="its weights unpacked to bfloat16", why="no kernel")
    artifact = release.artifact.model_copy(update={"emulated": emulated})
    found = native_table(release.model_copy(update={"artifact": artifact}))
    assert found is not None
    assert {"Weights", "Perplexity"} <= {row[0] for row in found.rows}
    assert not [row for row in found.rows if row[0] == "Server memory" or "tokens/s" in row[0]]
