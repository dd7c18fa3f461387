"""One release, six outputs: a figure that is shown twice is the same, and a ratio is that of the numbers beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.comparison import recheck
from evals.comparison.compare import MeasuredModel, compare
from evals.report import html_report, markdown, release_comparison
from qpack.cli.render import compare as compare_command
from qpack.cli.render import show
from qpack.cli.render.figures import figures
from qpack.core.records import Evidence, Release
from registry.core.protocol import Resolved
from registry.release import card
from tests.unit import evidence_samples as samples
from tests.unit.figures_shown import Texts, hold_together
from tests.unit.registry_examples import serving
from tests.unit.test_other_work import shared


def printed(release: Release, capsys: pytest.CaptureFixture[str]) -> str:
    figures(release)
    return capsys.readouterr().out


def texts_of(release: Release, capsys: pytest.CaptureFixture[str]) -> Texts:
    resolved = Resolved(name="a", version="1", digest="sha256:0", aliases=(), annotations={}, created=release.created)
    show.shown(resolved, release, {}, (), as_json=True)
    shown = json.loads(capsys.readouterr().out)["release"]
    both = release_comparison.compare({"first": release, "other": release})
    compare_command.compared(both, as_json=True)
    row = json.loads(capsys.readouterr().out)["rows"][0]
    compare_command.compared(both, as_json=False)
    return Texts(
        name="first",
        compared=capsys.readouterr().out,
        compared_row=row,
        console=printed(release, capsys),
        release=shown,
        page=html_report.render(release),
        markdown=markdown.render(release, release.verdict, "a"),
        card=card.render(release, serving()),
    )


def on_gpu(of: Evidence, loaded: int) -> Evidence:
    memory = of.memory.model_copy(update={"weights_loaded_bytes": loaded, "kv_cache_bytes": 2**30})
    return of.model_copy(update={"memory": memory})


@pytest.fixture(params=["in turn", "separate", "on an accelerator", "beside other work"])
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Release:
    if request.param == "beside other work":
        return shared(tmp_path, 0.0, 0.5)
    made = samples.make_release(tmp_path, rounds=0 if request.param == "separate" else 5)
    if request.param != "on an accelerator":
        return made
    sides = on_gpu(made.baseline, 600 * 2**20), on_gpu(made.artifact, 200 * 2**20)
    logprobs = (tmp_path / "baseline.npz", tmp_path / "artifact.npz")
    found = compare(*map(MeasuredModel, sides, logprobs), interleaved=made.interleaved)
    return made.model_copy(update={"baseline": sides[0], "artifact": sides[1], "comparison": found})


def test_a_figure_that_is_shown_twice_is_the_same_figure_and_a_ratio_that_of_its_numbers(
    release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hold_together(texts_of(release, capsys)) > 20


def test_a_release_of_0_1_with_medians_over_its_rounds_is_shown_with_what_its_ratio_is_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = samples.make_release(tmp_path, rounds=5)
    assert recheck.figures(made, seed=0) == ()
    old = tuple(
        speed.model_copy(update={"tokens_per_second": medians(made, speed.concurrency)})
        for speed in made.comparison.speed
    )
    assert old != made.comparison.speed
    written_by_0_1 = made.model_copy(update={"comparison": made.comparison.model_copy(update={"speed": old})})
    assert recheck.figures(written_by_0_1, seed=0) == ()
    assert printed(written_by_0_1, capsys) == printed(made, capsys)
    forged = made.comparison.speed[0].model_copy(update={"tokens_per_second": (1.0, 2.0)})
    bad = made.comparison.model_copy(update={"speed": (forged, *made.comparison.speed[1:])})
    assert recheck.figures(made.model_copy(update={"comparison": bad}), seed=0) != ()


def medians(release: Release, concurrency: int) -> tuple[float, float]:
    assert release.interleaved is not None
    (level,) = (level for level in release.interleaved.levels if level.concurrency == concurrency)
    rates = [(r.reference.output_tokens_per_second, r.subject.output_tokens_per_second) for r in level.rounds]
    b, a = (sorted(side)[len(rates) // 2] for side in zip(*rates, strict=True))
    return b, a
