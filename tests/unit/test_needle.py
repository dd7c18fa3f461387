"""Facts hidden in long text: where they are put, how long the text gets, and what follows from the answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.comparison import needle_difference
from evals.comparison.compare import differences
from evals.gates.gates import judge
from evals.measure import needle
from evals.report import html_report, markdown
from qpack.core.errors import RecipeError
from qpack.core.findings import Needle
from qpack.core.records import Release
from qpack.recipe import recipe_file
from tests.unit import evidence_samples as samples
from tests.unit.recipes import RECIPE, workspace


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return samples.make_release(tmp_path_factory.mktemp("release"))


def finding(found: int, of: int = 10) -> Needle:
    made = samples.needle()
    answers = tuple(a.model_copy(update={"found": i < found}) for i, a in enumerate(made.answers[:of]))
    return made.model_copy(update={"answers": answers})


@given(st.floats(0, 1), st.integers(1, 40), st.booleans())
def test_the_fact_stands_once_at_its_depth_and_the_rest_in_order(depth: float, count: int, chat: bool):
    hay = [f"Sentence {i} of the hay." for i in range(count)]
    text = needle.question(hay, depth, "Alderbank", "123456", chat=chat)
    fact = "The number of the locker in Alderbank is 123456."
    before, _, after = text.partition(fact)
    assert fact not in after
    assert before.count("Sentence") == round(depth * count)
    assert [s for s in hay if s in before] + [s for s in hay if s in after] == hay
    assert "What is the number of the locker in Alderbank?" in after
    assert "123456" not in after


@given(st.integers(0, 300))
def test_the_longest_text_that_fits_is_found(limit: int):
    asked = []

    def fits(count: int) -> bool:
        asked.append(count)
        return count <= limit

    assert needle.largest(fits) == limit
    assert len(asked) <= 20


def test_no_place_and_no_number_is_hidden_twice_and_a_seed_hides_the_same():
    made = needle.facts(3)
    assert len(made) == len({place for place, _ in made}) == len({number for _, number in made}) == 400
    assert all(len(number) == 6 for _, number in made)
    assert made == needle.facts(3) != needle.facts(4)


@given(st.text(alphabet="ab. \n!", max_size=900))
def test_hay_loses_no_word(text: str):
    made = needle.pieces(text)
    assert "".join("".join(made).split()) == "".join(text.split())
    assert all(len(piece) <= 300 for piece in made)


def test_what_the_baseline_finds_and_the_artifact_misses_is_the_drop():
    made = needle_difference.compare(samples.needle(), samples.needle(quantized=True))
    assert (made.baseline, made.artifact, made.no_verdict) == (0.9, 0.7, "")
    assert made.drop.value == pytest.approx(0.2)
    assert made.drop.samples == 10
    assert made.drop.interval is not None
    assert made.drop.interval.low < 0.2 < made.drop.interval.high


@pytest.mark.parametrize(("found", "silent"), [(0, True), (4, True), (5, False), (10, False)])
def test_a_baseline_that_finds_less_than_half_gives_no_verdict(found: int, silent: bool, release: Release):
    made = needle_difference.compare(finding(found), finding(found))
    assert bool(made.no_verdict) == silent
    comparison = release.comparison.model_copy(update={"needle": made})
    (gate,) = judge(comparison, release.artifact, {"needle_drop": 0.5}).gates
    assert gate.outcome == ("undecided" if silent else "pass")
    assert ("The baseline finds only" in gate.why) == silent


def test_a_gate_on_what_was_not_asked_fails(release: Release):
    comparison = release.comparison.model_copy(update={"needle": None})
    assert judge(comparison, release.artifact, {"needle_drop": 0.5}).outcome == "fail"


def test_other_prompts_can_not_be_compared(release: Release):
    other = samples.needle().model_copy(update={"prompts_digest": "0" * 64})
    for changed in (other, None):
        found = differences(release.baseline, release.artifact.model_copy(update={"needle": changed}))
        assert [(p.code.name, "needle prompts" in p.message) for p in found] == [("measured-differently", True)]


def test_every_depth_stands_in_the_report_with_what_was_said_instead(release: Release):
    page = html_report.render(release)
    assert "facts hidden in 1,993 tokens, context 2,048" in page
    assert "for 100003" in page
    assert "for 100009" not in page, "the baseline missed it too"
    assert "<b>bold</b>" not in page
    assert "of 10 facts the baseline finds 90.0 %, the artifact 70.0 %" in markdown.render(
        release, release.verdict, "x"
    )


def test_a_gate_without_the_check_is_told(tmp_path: Path):
    path = workspace(tmp_path, RECIPE.replace("accuracy_drop: 0.1", "needle_drop: 0.1"))
    with pytest.raises(RecipeError) as error:
        recipe_file.load(path)
    assert [(p.code.name, p.where.key) for p in error.value.problems] == [("unmeasured-gate", ("gates", "needle_drop"))]
