"""What 0.2 makes of a release that 0.1.0 built: a very small model, quantized, measured and published by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qpack.core.records import Release
from qpack.pipeline.rejudge import rejudge
from registry.release import release_folder
from registry.serving.serving_manifest import ServingManifest

MADE = Path(__file__).parent / "snapshots" / "release-0.1.0"


@pytest.fixture(scope="module")
def release() -> Release:
    return release_folder.read((MADE / "release.json").read_bytes(), "release.json")


def test_the_release_is_read_with_every_figure(release: Release) -> None:
    assert release.qpack_version == "0.1.0"
    assert [task.task for task in release.baseline.accuracy.tasks] == ["qpack_piqa"]
    assert len(release.artifact.accuracy.tasks[0].samples) == 4
    assert round(release.comparison.perplexity_ratio.value, 3) == 0.990
    assert release.comparison.divergences is None, "0.1 kept no sums of the divergence"


def test_its_figures_and_its_verdict_come_out_again(release: Release) -> None:
    judged = rejudge(release)
    assert judged.figures == ()
    assert judged.verdict == ()
    assert release.verdict.outcome == "pass"


def test_a_changed_verdict_of_it_is_still_found(release: Release) -> None:
    (gate, *rest) = release.verdict.gates
    harder = gate.model_copy(update={"bound": 0.5})
    verdict = release.verdict.model_copy(update={"gates": (harder, *rest)})
    assert rejudge(release.model_copy(update={"verdict": verdict})).verdict


def test_its_serving_manifest_is_read() -> None:
    manifest = ServingManifest.from_json((MADE / "serving.json").read_text())
    assert (manifest.hardware, manifest.target) == ("cpu", None)
    assert manifest.engine.version == "0.32.0"
