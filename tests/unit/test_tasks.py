"""The task files and every row of the data that they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evals.measure import suite
from evals.measure.suite import SUITES, TASKS, TaskRequest, expand
from evals.tasks import generated
from evals.tasks.utils import read_docs, to_doc, to_problem


class _Loader(yaml.SafeLoader):
    """YAML with lm-eval's !function, which is kept as its text."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def task_file(name: str) -> dict[str, Any]:
    """The task file of `name` as data."""
    config: dict[str, Any] = yaml.load((suite.TASKS_DIR / f"{name}.yaml").read_text(), Loader=_Loader)
    return config


def test_every_task_file_is_in_the_table_and_every_task_has_a_file():
    assert {path.stem for path in suite.TASKS_DIR.glob("*.yaml")} == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_file_says_what_the_table_says(name: str):
    config = task_file(name)
    assert config["task"] == name
    own = TASKS[name]
    if own.kind == "chat":
        assert config["dataset_kwargs"]["made"] == name.removeprefix("qpack_")
        assert len(generated.MAKERS[config["dataset_kwargs"]["made"]]()) == own.items
        assert config["generation_kwargs"]["max_gen_toks"] == own.answer_tokens
        assert [entry["metric"] for entry in config["metric_list"]] == list(own.metrics)
        assert (config["custom_dataset"], config["output_type"]) == ("generated.dataset", "generate_until")
        assert hasattr(generated, config["process_results"].removeprefix("generated."))
        return
    assert config["dataset_kwargs"] == {"file": own.file}
    assert config["metadata"]["version"] is not None
    assert TASKS[name].metric in {entry["metric"] for entry in config["metric_list"]}
    if TASKS[name].kind == "number":
        assert (config["custom_dataset"], config["output_type"]) == ("utils.word_problems", "generate_until")
        assert config["generation_kwargs"]["do_sample"] is False
        return
    assert (config["custom_dataset"], config["output_type"]) == ("utils.dataset", "multiple_choice")
    assert (config["doc_to_choice"], config["doc_to_target"]) == ("choices", "gold")


CHOICES = [name for name, task in TASKS.items() if task.kind == "choices"]


@pytest.mark.parametrize("name", CHOICES)
def test_every_row_becomes_a_scorable_document_or_is_counted_as_dropped(name: str):
    path = suite.data_root() / TASKS[name].file
    docs, dropped = read_docs(path)
    assert len(docs) == TASKS[name].items
    assert len(docs) + dropped == len(path.read_text().splitlines())
    assert dropped <= 0.02 * len(docs)
    for doc in docs:
        assert 0 <= doc["gold"] < len(doc["choices"]) >= 2
        assert doc["choices"].count(doc["choices"][doc["gold"]]) == 1
        assert all(choice == choice.strip() != "" for choice in doc["choices"])
        assert doc["question"]
    assert sum(len(doc["choices"]) for doc in docs) == TASKS[name].choices * len(docs)
    assert max(sum(doc["gold"] == g for doc in docs) for g in range(5)) < 0.6 * len(docs), "one letter is mostly right"


def test_reading_twice_gives_the_same_documents():
    path = suite.data_root() / TASKS["qpack_siqa"].file
    assert read_docs(path) == read_docs(path)


def test_a_row_that_stands_there_twice_is_one_item(tmp_path: Path):
    row = '{"question": "q", "options": "A. x\\nB. y", "answer": "B. y"}\n'
    (tmp_path / "rows.jsonl").write_text(row * 2)
    docs, dropped = read_docs(tmp_path / "rows.jsonl")
    assert (len(docs), dropped) == (1, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"answer": "B. z"},
        {"answer": "y"},
        {"answer": None},
        {"question": "  "},
        {"options": "A. x"},
        {"options": "A. x\nC. y", "answer": "C. y"},
        {"options": "A. x\nB. "},
        {"options": "A. y\nB. y"},
        {"options": ".\nA. x\nB. y"},
    ],
)
def test_a_row_that_cannot_be_scored_is_no_document(change: dict[str, Any]):
    row = {"question": "q", "options": "A. x\nB. y", "answer": "B. y"}
    assert to_doc(row) is not None
    assert to_doc(row | change) is None


texts = st.text(st.characters(codec="ascii", exclude_characters="\n\r\x0b\x0c\x1c\x1d\x1e"), min_size=1).filter(
    lambda text: text.strip() != ""
)


@given(st.lists(texts.map(str.strip), min_size=2, max_size=6, unique=True), st.data())
def test_options_come_back_as_they_were_written(choices: list[str], data: st.DataObject):
    gold = data.draw(st.integers(0, len(choices) - 1))
    lines = [f"{'ABCDEF'[i]}. {choice}" for i, choice in enumerate(choices)]
    doc = to_doc({"question": "q", "options": "\n".join(lines), "answer": lines[gold]})
    assert doc is not None
    assert (doc["choices"], doc["gold"]) == (choices, gold)


def test_a_misspelt_task_is_named_with_the_one_that_was_meant():
    for wrong in ("qpack_pica", "piqa", "qpack-piqa"):
        found = suite.problem(TaskRequest(wrong))
        assert found is not None
        assert "Did you mean 'qpack_piqa'?" in str(found)


def test_a_task_that_resembles_none_lists_those_there_are():
    found = suite.problem(TaskRequest("zzz"))
    assert found is not None
    assert all(name in found.hint for name in TASKS)


def test_more_items_than_there_are_is_a_problem():
    assert suite.problem(TaskRequest("qpack_openbookqa", limit=500)) is None
    assert suite.problem(TaskRequest("qpack_openbookqa", limit=501)) is not None


def test_tasks_of_lm_eval_are_left_to_lm_eval():
    assert suite.problem(TaskRequest("lm_eval:arc_easy")) is None
    assert suite.problem(TaskRequest("lm_eval:")) is not None


def test_every_word_problem_has_a_number_for_its_answer_that_its_own_filter_finds():
    import re

    (name,) = (name for name, task in TASKS.items() if task.kind == "number")
    docs, dropped = read_docs(suite.data_root() / TASKS[name].file, "number")
    assert len(docs) == TASKS[name].items
    assert dropped <= 0.07 * len(docs), "names, times, fractions and ordinals"
    pattern = task_file(name)["filter_list"][0]["filter"][0]["regex_pattern"]
    for doc in docs:
        assert re.findall(pattern, f"7 and 8 make {doc['answer']}.")[-1] == doc["answer"]


@pytest.mark.parametrize(
    ("answer", "number"),
    [("9 apples", "9"), ("$3.50", "3.50"), ("1,200", "1200"), ("-4 degrees", "-4"), ("6th", None), ("3/4", None),
     ("4:30", None), ("Yes", None), ("", None)],
)  # fmt: skip
def test_only_an_answer_that_is_one_number_is_kept(answer: str, number: str | None):
    doc = to_problem({"passage": "p", "question": "q", "answer": answer})
    assert (doc and doc["answer"]) == number


@pytest.mark.parametrize("name", SUITES)
def test_every_task_of_a_suite_is_one_that_there_is(name: str):
    tasks = expand(TaskRequest(f"suite:{name}"))
    assert tasks == SUITES[name].tasks
    assert all(suite.problem(task, run_code=True) is None for task in tasks)
    assert len({task.name for task in tasks}) == len(tasks)


def test_an_entry_lays_its_own_limit_examples_and_template_over_a_suite():
    tasks = expand(TaskRequest("suite:quick", limit=7, chat=True), few_shot=3)
    assert {(task.limit, task.few_shot, task.chat) for task in tasks} == {(7, 3, True)}
    assert expand(TaskRequest("qpack_piqa", few_shot=1), few_shot=2) == (TaskRequest("qpack_piqa", few_shot=2),)


def test_a_suite_that_there_is_none_of_gets_those_that_there_are():
    (request,) = expand(TaskRequest("suite:fast"))
    found = suite.problem(request)
    assert found is not None
    assert "suite:quick" in found.hint
