"""Claims about releases side by side: what may be compared, and what is said when it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evals.comparison.comparison_keys import keys, reasons
from evals.report.release_comparison import compare
from qpack.core.errors import EvaluateError
from qpack.core.records import Evidence, Release
from tests.unit.evidence_samples import evidence, make_release


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tmp_path_factory.mktemp("logprobs"))


@pytest.fixture(scope="module")
def worse(tmp_path_factory: pytest.TempPathFactory) -> Release:
    release = make_release(tmp_path_factory.mktemp("logprobs"), harm=0.2)
    return release.model_copy(update={"recipe": {**release.recipe, "quantize": {"group_size": 128}}})


def other(release: Release, part: str, **change: Any) -> Release:
    artifact = release.artifact
    changed = artifact.model_copy(update={part: getattr(artifact, part).model_copy(update=change)})
    return release.model_copy(update={"artifact": changed})


def test_a_release_against_itself_changes_nothing_and_shares_the_front(first: Release):
    found = compare({"a": first, "b": first})
    assert [row.on_front for row in found.rows] == [True, True]
    assert found.rows[0].against_first is None
    assert found.rows[1].against_first is not None
    assert found.rows[1].against_first.value == 0
    assert found.inputs == {}
    assert found.left_out == ()
    assert found.compared_by == ("accuracy", "memory", "tokens per second")


def test_one_that_is_worse_and_no_smaller_or_faster_is_off_the_front(first: Release, worse: Release):
    good, bad = compare({"good": first, "bad": worse}).rows
    assert (good.on_front, bad.on_front) == (True, False)
    assert bad.against_first is not None
    assert bad.against_first.value == pytest.approx(good.accuracy - bad.accuracy)
    assert bad.against_first.interval is not None
    assert bad.against_first.interval.low > 0


def test_what_differs_in_the_inputs_is_named(first: Release, worse: Release):
    assert compare({"a": first, "b": worse}).inputs == {"quantize.group_size": ("", "128")}


def test_tasks_that_were_asked_otherwise_refuse_the_comparison_with_every_reason(first: Release):
    task, *rest = first.artifact.accuracy.tasks
    asked = (task.model_copy(update={"few_shot": 5, "samples": task.samples[:-1]}), *rest)
    with pytest.raises(EvaluateError) as caught:
        compare({"a": first, "b": other(first, "accuracy", tasks=asked)})
    found = [(problem.code.name, problem.where.name) for problem in caught.value.problems]
    assert found == [("asked-differently", "a and b")] * len(found)
    assert caught.value.problems[0].message == "piqa: few-shot examples: 0 and 5"
    assert caught.value.problems[1].message.startswith("piqa: items: 200 (")


def test_other_hardware_leaves_speed_and_memory_out_and_says_why(first: Release):
    found = compare({"a": first, "b": other(first, "hardware", name="Another CPU")})
    assert {row.tokens_per_second for row in found.rows} == {row.memory_bytes for row in found.rows} == {None}
    assert found.compared_by == ("accuracy", "weights")
    (why,) = found.left_out
    assert "hardware: cpu, Example CPU @ 2.60 GHz, 2 cores and cpu, Another CPU, 2 cores" in why


def test_other_text_leaves_perplexity_out(first: Release):
    found = compare({"a": first, "b": other(first, "language", text_digest="f" * 64)})
    assert {row.perplexity for row in found.rows} == {None}
    assert found.rows[0].tokens_per_second is not None


@pytest.mark.parametrize(
    ("group", "part", "change"),
    [
        ("accuracy", "accuracy", {"lm_eval_version": "0.5"}),
        ("accuracy", "accuracy", {"tasks": ()}),
        ("text", "language", {"top_k": 3}),
        ("machine", "hardware", {"cores": 64}),
        ("machine", "memory", {"kv_cache_bytes": 1}),
        ("machine", "latency", {"levels": ()}),
        ("machine", "latency", {"tool": "another"}),
    ],
)
def test_each_condition_is_in_the_group_of_what_it_decides(group: str, part: str, change: dict[str, Any]):
    one = evidence()
    changed: Evidence = one.model_copy(update={part: getattr(one, part).model_copy(update=change)})
    for name in ("accuracy", "text", "machine"):
        assert bool(reasons(getattr(keys(one), name), getattr(keys(changed), name))) == (name == group)


def test_baseline_and_artifact_of_a_build_have_the_same_keys():
    one, two = keys(evidence()), keys(evidence(quantized=True))
    assert one == two


def test_the_memory_of_the_machine_may_differ_between_boots(first: Release, tmp_path: Path):
    assert compare({"a": first, "b": other(first, "hardware", memory_bytes=1)}).left_out == ()
