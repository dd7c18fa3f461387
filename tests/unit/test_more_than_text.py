"""Tasks that need more than text: code that is executed, where the recipe says so, and pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.measure import suite
from evals.measure.suite import TaskRequest, expand
from evals.tasks import picture_items
from qpack.recipe import generated_answers
from qpack.recipe.recipe_file import load
from quantize.checkpoint import picture_placeholder
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


LOOPED = "{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
PLACED = "{% else %}<|vision_start|><|image_pad|>{% endif %}{% endfor %}{% endfor %}"
UNPLACED = "{% else %}PICTURE{% endif %}{% endfor %}{% endfor %}"
CONFIG = {"vision_config": {"depth": 1}, "image_token_id": 7}


def checkpoint(folder: Path, template: str) -> Path:
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer.json").write_text('{"added_tokens": [{"id": 7, "content": "<|image_pad|>"}]}')
    return folder


def test_a_template_that_reads_parts_and_writes_no_placeholder_gives_pictures_no_place(tmp_path: Path) -> None:
    found = picture_placeholder.lacks(checkpoint(tmp_path, LOOPED + UNPLACED), CONFIG)
    assert found == ("<|image_pad|>",)


@pytest.mark.parametrize(
    "template",
    [
        LOOPED + PLACED,
        LOOPED + UNPLACED.replace("PICTURE", "{{ image_token }}"),
        # Llama 4's own token for a picture isn't the one that its config numbers.
        LOOPED + UNPLACED.replace("PICTURE", "<|image|>"),
        # vLLM itself puts the placeholder into the text that such a template gets.
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "",
    ],
)
def test_a_template_that_may_place_a_picture_is_not_accused(tmp_path: Path, template: str) -> None:
    assert picture_placeholder.lacks(checkpoint(tmp_path, template), CONFIG) == ()


def test_the_template_of_a_text_model_needs_no_placeholder(tmp_path: Path) -> None:
    assert picture_placeholder.lacks(checkpoint(tmp_path, LOOPED + UNPLACED), {"model_type": "llama"}) == ()


def test_a_recipe_that_serves_text_alone_is_not_warned(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    folder = checkpoint(tmp_path, LOOPED + UNPLACED)

    def warned(*settings: str) -> list[str]:
        loaded = load(tmp_path / "recipe.yaml", list(settings))
        return [problem.code.name for problem in generated_answers.unplaced_pictures(loaded, folder, CONFIG)]

    assert warned() == ["unplaced-pictures"]
    assert warned("serve.arguments={language-model-only: true}") == []
    assert warned("serve.arguments={limit-mm-per-prompt: {image: 0}}") == []
