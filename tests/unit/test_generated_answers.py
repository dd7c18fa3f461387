"""Claims about answers generated over chat: what is kept of each, how tasks made by code are judged, and the gates."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.comparison import recheck
from evals.gates.gates import judge
from evals.gates.interim_analysis import merge, seen
from evals.measure import suite
from evals.tasks import generated
from evals.workers import chat_answers
from evals.workers.lm_eval_job import Generation
from qpack.core.records import Release
from tests.unit import evidence_samples as samples

ROOT = Path(__file__).parents[2]
WORDS = (
    "harbour",
    "tide",
    "boat",
    "river",
    "stone",
    "apple",
    "garden",
    "window",
    "letter",
    "winter",
    "bridge",
    "forest",
)


def reply(content: str | None, finish: str = "stop", **message: Any) -> dict[str, Any]:
    choice = {"message": {"content": content, **message}, "finish_reason": finish}
    return {"choices": [choice], "usage": {"completion_tokens": 7}}


def answer(content: str | None, finish: str = "stop", stops: tuple[str, ...] = (), **message: Any) -> str:
    return chat_answers.answer_of(reply(content, finish, **message), "</think>", stops).answer


def test_thinking_is_no_part_of_the_answer() -> None:
    assert answer("<think>2 + 2 is 5? No.</think>\n\n4") == "4"
    assert answer("so 2 + 2...</think> 4") == "4", "a template that opens the thinking itself"
    assert answer("4", reasoning="2 + 2 is 4") == "4", "a server with a reasoning parser"
    assert answer(None, "length", reasoning="2 + 2") == ""


def test_thinking_that_was_cut_is_no_answer() -> None:
    assert answer("<think>the answer might be 17, or", "length") == ""


def test_the_tasks_stops_end_the_answer_and_not_the_thinking() -> None:
    assert answer("<think>Question: what?</think>4\nQuestion: next", stops=("Question:",)) == "4\n"


def test_an_answer_that_repeats_itself_to_the_end_is_a_loop_only_if_it_was_cut() -> None:
    again = "Wait, let me check that again. " * 100
    for finish, looped in (("length", True), ("stop", False)):
        assert chat_answers.answer_of(reply(again, finish), "</think>", ()).looped is looped
    counted = "\n".join(f"Step {n}: I add {n} to the sum." for n in range(200))
    assert chat_answers.loops(counted), "a counter that runs on"


THINGS = [
    f"{adjective} {noun}" for adjective in ("old", "new", "red", "odd") for noun in ("mill", "boat", "rule", "axle")
]


@given(st.integers(0, 99), st.integers(20, 200), st.integers(600, 3000))
@settings(max_examples=30)
def test_a_loop_that_has_only_begun_is_one(seed: int, length: int, before: int) -> None:
    chance = random.Random(seed)
    thought, passage = ("".join(chance.choices("abcdefgh ,.", k=size)) for size in (before, length))
    assert not chat_answers.loops(thought)
    assert not chat_answers.loops(thought + passage + passage)
    assert chat_answers.loops(thought + passage * (1 + chat_answers.SHORTEST // length))


def test_lists_tables_and_code_that_go_on_are_no_loops() -> None:
    listed = "\n".join(
        f"{n}. {THINGS[n % 16].title()}: {n * n * 37 % 1009} pieces at {n * 7 % 23} each" for n in range(60)
    )
    table = "\n".join(f"| {THINGS[n % 16]} | {n * 389 % 997} | {n * 53 % 89}.{n * 11 % 7} |" for n in range(80))
    code = (Path(chat_answers.__file__)).read_text()
    for text in (listed, table, code):
        ends = range(chat_answers.SHORTEST, min(len(text), 6000), 97)
        assert not any(chat_answers.loops(text[:end]) for end in ends), text[:60]


@pytest.mark.parametrize("name", ["BoolQ/test.jsonl", "ASDiv/test.jsonl"])
def test_text_that_goes_on_is_no_loop(name: str) -> None:
    rows = (suite.data_root() / name).read_text().splitlines()[:400]
    text = " ".join(json.loads(row).get("passage", "") for row in rows)
    parts = [text[at : at + chat_answers.TAIL] for at in range(0, len(text) - chat_answers.TAIL, chat_answers.TAIL)]
    assert len(parts) > 10
    assert not any(map(chat_answers.loops, parts))


# As SmolLM2-135M ended answers that were cut.
ENDLESS = (
    "\n\nThe answer is 32.",
    "\n\nSo, there's 1 card left.",
    " the number of",
    " It's not about the actual people in the book, but about the way the author's writing style and words are used.",
    "t today, I'll share a special day, bu",
    " + 1 + 1 + 1 + 1 + 1 + 2 + 3 + 4 + 5 + 6\n= 13",
    "\n1. 1\n2. 2\n3. 3\n\nSo,\n2. 2\n3. 3\n\nSo,",
)


@pytest.mark.parametrize("again", ENDLESS)
@pytest.mark.parametrize("characters", [620, 900, 1400])
def test_a_loop_that_begins_late_in_a_long_answer_is_one(again: str, characters: int) -> None:
    answer = (ROOT / "docs" / "tutorial.md").read_text()[: chat_answers.TAIL - characters]
    assert not chat_answers.loops(answer)
    assert chat_answers.loops(answer + again * (characters // len(again) + 1))


HONEST = {
    "table": "\n".join(f"| {n} | {n * n} | {n**3} | {'odd' if n % 2 else 'even'} |" for n in range(1, 200)),
    "products": "\n".join(f"{a} x {b} = {a * b}" for a in range(2, 30) for b in range(1, 13)),
    "list": "\n".join(f"{n}. {a}, beside {b}" for n, (a, b) in enumerate(itertools.product(WORDS, WORDS), 1)),
    "sums": "\n".join(f"{a} + {a * a % 97} = {a + a * a % 97}, so the sum is now {a**3 % 9973}." for a in range(200)),
}


@pytest.mark.parametrize("name", HONEST)
def test_a_list_a_table_and_a_calculation_are_no_loops_wherever_they_are_cut(name: str) -> None:
    text = HONEST[name]
    assert len(text) > chat_answers.TAIL
    assert not any(chat_answers.loops(text[:at]) for at in range(chat_answers.SHORTEST, len(text), 97))


@pytest.mark.parametrize("pattern", ["qpack/**/*.py", "docs/**/*.md", "registry/serving/*schema*.json"])
def test_code_documents_and_json_are_no_loops_wherever_they_are_cut(pattern: str) -> None:
    looked = 0
    for file in sorted(ROOT.glob(pattern)):
        text = file.read_text()
        for at in range(chat_answers.SHORTEST, len(text), 1500):
            assert not chat_answers.loops(text[:at]), f"{file} at {at}"
            looked += 1
    assert looked > 10


def test_a_reply_without_usage_or_choice_is_an_error() -> None:
    for broken in ({}, {"choices": []}, {"choices": [{"message": {}, "finish_reason": "stop"}]}):
        with pytest.raises(ValueError, match="no choice, or no usage"):
            chat_answers.answer_of(broken, "</think>", ())


@given(st.integers(0, 10**6), st.text(max_size=20), st.integers(0, 50), st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_seeds_follow_from_item_and_repeat_and_differ(seed: int, task: str, one: int, other: int) -> None:
    first, again = (chat_answers.seed_of(seed, (task, 3), one) for _ in range(2))
    assert first == again
    assert 0 <= first < 2**31
    assert (chat_answers.seed_of(seed, (task, 3), other) == first) is (one == other)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Answer: 12", 1.0),
        ("3 and 9. answer: 1,2", 1.0),
        ("Answer: 13. Or 12", 0.0),
        ("It is 12", 1.0),
        ("", 0.0),
        ("Answer: none", 0.0),
    ],
)
def test_a_number_is_judged_by_the_last_answer_line(text: str, right: float) -> None:
    assert generated.judge_number({"check": '{"number": 12}'}, [text])["exact_match"] == right


def test_rules_judge_what_they_say() -> None:
    checks = [
        {"most_words": 5},
        {"word": "river"},
        {"without": "!"},
        {"lower": True},
        {"ends": "the end."},
        {"sentences": 1},
    ]
    doc = {"check": json.dumps(checks)}
    kept = generated.judge_instructions(doc, ["the river is the end."])
    assert kept == {"prompt_level_strict_acc": True, "inst_level_strict_acc": [True] * 6}
    lost = generated.judge_instructions(doc, ["The sea! Not at all, and so on. No"])
    assert lost["inst_level_strict_acc"] == [False] * 6
    assert not any(generated.judge_instructions(doc, [""])["inst_level_strict_acc"])


@pytest.mark.parametrize(
    ("call", "valid", "right"),
    [
        ({"name": "set_alarm", "arguments": {"hour": 7, "minute": 30}}, 1.0, 1.0),
        ({"name": "set_alarm", "arguments": {"hour": 8, "minute": 30}}, 1.0, 0.0),
        ({"name": "set_alarm", "arguments": {"hour": "7", "minute": 30}}, 0.0, 0.0),
        ({"name": "set_alarm", "arguments": {"hour": True, "minute": 30}}, 0.0, 0.0),
        ({"name": "set_alarm", "arguments": {"hour": 7}}, 0.0, 0.0),
        ({"name": ["set_alarm"], "arguments": {"hour": 7, "minute": 30}}, 0.0, 0.0),
    ],
)
def test_a_call_is_judged_by_its_schema_and_its_values(call: dict[str, Any], valid: float, right: float) -> None:
    doc = {"check": json.dumps({"name": "set_alarm", "arguments": {"hour": 7, "minute": 30}})}
    assert generated.judge_call(doc, [f"```json\n{json.dumps(call)}\n```"]) == {
        "right_call": right,
        "valid_call": valid,
    }


@pytest.mark.parametrize("made", generated.MAKERS)
def test_items_made_by_code_are_distinct_and_the_same_each_time(made: str) -> None:
    first, again = generated.MAKERS[made](), generated.MAKERS[made]()
    assert first == again
    assert len({(doc["prompt"], doc.get("picture")) for doc in first}) == len(first)


def test_a_word_problem_has_the_answer_that_its_sentences_give() -> None:
    """Computed again from the text of each problem."""
    import re

    for doc in generated.word_problems():
        text, count = doc["prompt"].partition("How many")[0], 0
        for sentence in text.split(". "):
            numbers = [int(n) for n in re.findall(r"\d+", sentence)]
            if " has " in sentence and not count:
                count = numbers[0]
            elif "gives" in sentence:
                count -= numbers[0]
            elif "times as large" in sentence:
                count *= numbers[0]
            elif "packs with" in sentence:
                count += numbers[0] * numbers[1]
            elif "half" in sentence:
                count //= 2
            elif "finds" in sentence:
                count += numbers[0]
        assert json.loads(doc["check"]) == {"number": count}, doc["prompt"]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return samples.make_release(tmp_path_factory.mktemp("release"))


def test_the_gates_compare_what_a_hand_counts(release: Release) -> None:
    (found,) = release.comparison.generated
    before, after = (side.accuracy.tasks[-1].generated for side in (release.baseline, release.artifact))
    assert found.answers == 4 * len(after)
    assert found.truncated.value == pytest.approx(sum(item.truncated for item in after) / found.answers)
    loops = [sum(item.looped for item in side) / found.answers for side in (before, after)]
    assert found.loop_rate.value == pytest.approx(loops[1] - loops[0])
    means = [np.mean([np.mean(item.tokens) for item in side]) for side in (before, after)]
    assert found.length_ratio.value == pytest.approx(means[1] / means[0])
    gates = judge(
        release.comparison, release.artifact, {"truncated": 0.01, "loop_rate": 0.5, "length_ratio": 1.01}
    ).gates
    assert [(gate.gate.partition("[")[0], gate.outcome) for gate in gates] == [
        ("truncated", "fail"), ("loop_rate", "pass"), ("length_ratio", "fail")]  # fmt: skip


def test_verify_counts_generated_answers_again(release: Release) -> None:
    (found,) = release.comparison.generated
    wrong = found.model_copy(update={"truncated_baseline": 0.0})
    changed = release.model_copy(update={"comparison": release.comparison.model_copy(update={"generated": (wrong,)})})
    assert any("generated" in each for each in recheck.figures(changed, 0))


def test_looks_keep_each_items_answers_with_it() -> None:
    whole = samples.accuracy()
    placed = []
    for task in whole.tasks:
        numbered = tuple(s.model_copy(update={"id": f"{task.task}:{i}:x"}) for i, s in enumerate(task.samples))
        placed.append(task.model_copy(update={"samples": numbered}))
    whole = whole.model_copy(update={"tasks": tuple(placed)})
    last = whole.tasks[-1]

    def part(begin: int) -> Any:
        tasks = tuple(t.model_copy(update={"samples": t.samples[begin::2], "generated": t.generated[begin::2]})
                      for t in whole.tasks)  # fmt: skip
        return whole.model_copy(update={"tasks": tasks})

    joined = merge([part(1), part(0)])
    assert joined.tasks[-1].samples == last.samples
    assert joined.tasks[-1].generated == last.generated
    first = merge([part(1)])
    assert seen(whole, first).tasks[-1].generated == last.generated[1::2]


def test_a_group_is_one_score_where_lm_eval_has_one_and_its_parts_where_not() -> None:
    names = {name: [each.name for each in suite.expand(suite.TaskRequest(f"lm_eval:{name}"))]
             for name in ("mmlu", "mmlu_pro", "bbh", "leaderboard", "gsm8k")}  # fmt: skip
    assert [names[name] for name in ("mmlu", "mmlu_pro", "bbh", "gsm8k")] == [
        ["lm_eval:mmlu"], ["lm_eval:mmlu_pro"], ["lm_eval:bbh"], ["lm_eval:gsm8k"]]  # fmt: skip
    assert names["leaderboard"][:3] == [
        "lm_eval:leaderboard_mmlu_pro",
        "lm_eval:leaderboard_bbh",
        "lm_eval:leaderboard_gpqa",
    ]
    assert suite.counted(suite.TaskRequest("lm_eval:mmlu", limit=10)) == (57, 570)
    assert suite.counted(suite.TaskRequest("lm_eval:bbh")) == (27, None)


@pytest.mark.parametrize(
    ("name", "more", "code"),
    [
        ("mmlu_proo", {}, "unknown-task"),
        ("ifeval", {}, "task-packages"),
        ("wikitext", {}, "task-metric"),
        ("gsm8k", {"metric": "acc"}, "task-metric"),
        ("mmlu", {"generation": Generation()}, "task-generation"),
        ("gsm8k", {"generation": Generation(), "metric": "exact_match,flexible-extract"}, None),
        ("mmlu", {}, None),
    ],
)
def test_check_refuses_what_the_worker_would_refuse(name: str, more: dict[str, Any], code: str | None) -> None:
    found = suite.problem(suite.TaskRequest(f"lm_eval:{name}", **more))
    assert (found.code.name if found else None) == code


def test_an_lm_eval_of_the_users_own_may_have_other_tasks() -> None:
    assert suite.problem(suite.TaskRequest("lm_eval:mine"), locked=False) is None


def test_a_recipe_whose_answers_do_not_fit_or_that_gates_on_none_is_refused(tmp_path: Path) -> None:
    from qpack.recipe import generated_answers
    from qpack.recipe.recipe_file import load
    from tests.unit.recipes import RECIPE

    def codes(**settings: str) -> list[str]:
        file = tmp_path / "recipe.yaml"
        file.write_text(RECIPE)
        loaded = load(file, [f"{key}={value}" for key, value in settings.items()])
        return [problem.code.name for problem in generated_answers.problems(loaded)]

    task = "[{task: suite:reasoning, generate: {max_tokens: %d}}]"
    assert codes(**{"evaluate.tasks": task % 32768}) == ["above-max-model-len"]
    assert codes(**{"evaluate.tasks": task % 256, "gates.truncated": "0.1"}) == []
    assert codes(**{"gates.loop_rate": "0.1"}) == ["unmeasured-gate"]


def test_a_model_without_a_chat_template_is_not_asked_over_chat(tmp_path: Path) -> None:
    from qpack.recipe import generated_answers
    from qpack.recipe.recipe_file import load
    from tests.unit.recipes import workspace

    file = workspace(tmp_path)
    loaded = load(file, ["evaluate.tasks=[{task: suite:tools}, {task: qpack_piqa, samples: 10}]"])
    (found,) = generated_answers.no_template(loaded, tmp_path / "model")
    assert (found.code.name, found.where.key) == ("no-chat-template", ("evaluate", "tasks", 0))
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages }}")
    assert generated_answers.no_template(loaded, tmp_path / "model") == []
    assert generated_answers.no_template(loaded, None) == []
