"""Tasks that need more than text: code that is executed, where the recipe says so, and pictures."""

from __future__ import annotations

from pathlib import Path

from evals.measure import suite
from evals.measure.suite import TaskRequest, expand
from evals.tasks import picture_items
from qpack.recipe import generated_answers
from qpack.recipe.recipe_file import load
from tests.unit.recipes import RECIPE


def test_the_code_suite_needs_the_recipes_permission() -> None:
    (task,) = expand(TaskRequest("suite:code"))
    refused = suite.problem(task)
    assert refused is not None
    assert refused.code.name == "runs-code"
    assert suite.problem(task, run_code=True) is None


def test_no_other_task_needs_it() -> None:
    for name, task in suite.TASKS.items():
        found = suite.problem(*expand(TaskRequest(name)))
        assert (found is not None) == task.runs_code, name


def test_a_model_that_takes_no_pictures_is_not_asked_about_them(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    loaded = load(file, ["evaluate.tasks=[{task: suite:vision, samples: 10}]"])
    (found,) = generated_answers.no_pictures(loaded, {"model_type": "llama"})
    assert found.code.name == "no-pictures"
    assert generated_answers.no_pictures(loaded, {"vision_config": {"depth": 2}}) == []
    text_only = load(file, ["evaluate.tasks=[{task: suite:tools}]"])
    assert generated_answers.no_pictures(text_only, {"model_type": "llama"}) == []


def test_the_pictures_are_distinct_and_their_answers_are_judged_by_the_word() -> None:
    docs = picture_items.pictures()
    assert len({doc["picture"] + doc["prompt"] for doc in docs}) == len(docs) == picture_items.ITEMS
    check = {"right": "two", "words": list(picture_items.NUMBERS)}
    for reply, right in (("Two.", True), ("2", True), ("There are two circles", True), ("one or two", False),
                         ("12", False), ("", False), ("12345678901", False)):  # fmt: skip
        assert picture_items.right(reply, check) == right, reply
