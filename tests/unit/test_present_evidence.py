"""Claims about what is said of evidence that is read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.comparison.verdicts import verdict
from evals.report import release_comparison
from qpack.cli.render import compare, gate, sweep
from qpack.core.errors import GateFailed, GateUndecided, RecipeError, RegistryError
from qpack.core.problems import BAD_RECIPE, Location
from qpack.core.records import Release
from qpack.pipeline.sweep import Point
from qpack.recipe.gate_policy import Bounds
from tests.unit.evidence_samples import make_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tmp_path_factory.mktemp("logprobs"))


def refused(release: Release, name: str, bound: float) -> GateFailed | GateUndecided | None:
    found = verdict(release.comparison, release.baseline, release.artifact, {name: bound})
    return gate.refusal(found, Bounds({name: bound}, {name: Location("policy.yaml", 7)}))


def test_a_pass_is_no_error_a_miss_is_6_and_a_doubt_is_7_at_the_line_of_the_bound(release: Release):
    assert refused(release, "size_ratio", 0.9) is None
    missed = refused(release, "throughput_ratio", 2.0)
    assert missed is not None
    assert missed.exit_code == 6
    assert [(p.code.name, p.where) for p in missed.problems] == [
        ("gate-failed", Location("policy.yaml", 7, name=f"throughput_ratio[{n}]")) for n in (1, 4, 16)
    ]
    doubt = refused(release, "accuracy_drop", release.comparison.accuracy_drop.value)
    assert doubt is not None
    assert doubt.exit_code == 7
    assert [p.code.name for p in doubt.problems] == ["gate-undecided"]


def test_json_of_a_comparison_has_every_row(release: Release, capsys: pytest.CaptureFixture[str]):
    compare.compared(release_comparison.compare({"a": release, "b": release}), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [row["on_front"] for row in found["rows"]] == [True, True]
    assert found["rows"][1]["against_first"]["value"] == 0
    assert found["left_out"] == []


def test_a_comparison_has_the_answers_over_chat_of_each_release(
    release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    (task,) = release.comparison.generated
    both = release_comparison.compare({"a": release, "b": release})
    compare.compared(both, as_json=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if task.task in line]
    assert [line[0] for line in lines] == ["a", "b"]
    tokens = [float(lines[0][-3]), float(lines[0][-1])]
    assert tokens == pytest.approx([task.tokens_baseline, task.tokens_baseline * task.length_ratio.value], abs=0.06)
    compare.compared(both, as_json=True)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["generated"][0]["answers"] for row in rows] == [task.answers] * 2
    without = release.model_copy(update={"comparison": release.comparison.model_copy(update={"generated": ()})})
    compare.compared(release_comparison.compare({"a": without, "b": without}), as_json=False)
    assert task.task not in capsys.readouterr().out


def test_a_file_that_can_not_be_written_is_an_error_that_names_its_option(release: Release, tmp_path: Path):
    with pytest.raises(RegistryError) as caught:
        gate.written(release, release.verdict, "x", junit=tmp_path / "no" / "file.xml", markdown=None)
    assert "--junit" in caught.value.hint


def test_a_sweep_shows_what_was_built_and_ends_with_what_was_not(release: Release, capsys: pytest.CaptureFixture[str]):
    bad = Point(("a=2",), error=RecipeError(BAD_RECIPE, "1 problem; nothing was started"))
    points = (Point(("a=1",), release=release), bad)
    sweep.swept(points, as_json=False)
    out = capsys.readouterr().out
    assert "a=1  *      pass" in out
    assert "not built: a=2: 1 problem; nothing was started" in out
    error = sweep.unbuilt(points)
    assert isinstance(error, RecipeError)
    assert error.what == "1 of 2 combinations could not be built; the others are in the store"
    assert sweep.unbuilt(points[:1]) is None
