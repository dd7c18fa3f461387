"""What the lm-eval worker hands back is held against what was asked for."""

from __future__ import annotations

import math
from typing import Any

import pytest

from evals.measure import accuracy
from evals.measure.eval_specs import TasksSpec
from evals.measure.suite import TaskRequest
from qpack.core.errors import EvaluateError


def raw(name: str = "qpack_piqa", count: int = 3) -> dict[str, Any]:
    """A worker's result of one task with `count` items."""
    samples = [{"id": f"{name}:{i}:0123456789ab", "score": float(i % 2)} for i in range(count)]
    score = {"task": name, "version": "1.0", "metric": "acc_norm", "few_shot": 0, "mean": 0.5, "samples": samples}
    score |= {"limit": count, "seed": 0, "chat_template": None}
    return {"lm_eval_version": "0.4.13", "tasks": [score]}


def test_samples_keep_their_order_and_scores():
    result = accuracy.read(raw(), TasksSpec((TaskRequest("qpack_piqa", limit=3),), 0))
    assert [sample.score for sample in result.tasks[0].samples] == [0.0, 1.0, 0.0]
    assert [sample.id for sample in result.tasks[0].samples] == [f"qpack_piqa:{i}:0123456789ab" for i in range(3)]


@pytest.mark.parametrize("limit", [2, 4, None])
def test_another_number_of_items_than_asked_for_is_an_error(limit: int | None):
    with pytest.raises(EvaluateError, match="3 items were scored"):
        accuracy.read(raw(), TasksSpec((TaskRequest("qpack_piqa", limit=limit),), 0))


def test_a_limit_above_the_data_means_all_of_it():
    result = accuracy.read(raw("qpack_openbookqa", 500), TasksSpec((TaskRequest("qpack_openbookqa", limit=900),), 0))
    assert len(result.tasks[0].samples) == 500


def test_an_item_scored_twice_is_an_error():
    result = raw()
    result["tasks"][0]["samples"][1] = result["tasks"][0]["samples"][0]
    with pytest.raises(EvaluateError, match="scored twice"):
        accuracy.read(result, TasksSpec((TaskRequest("qpack_piqa", limit=3),), 0))


def test_a_missing_task_is_an_error():
    with pytest.raises(EvaluateError, match="lm-eval gave results of"):
        accuracy.read(
            raw(),
            TasksSpec(
                (
                    TaskRequest("qpack_piqa", limit=3),
                    TaskRequest("qpack_siqa", limit=3),
                ),
                0,
            ),
        )


def test_a_score_that_is_not_finite_is_an_error():
    result = raw()
    result["tasks"][0]["samples"][0]["score"] = math.nan
    with pytest.raises(EvaluateError, match="finite"):
        accuracy.read(result, TasksSpec((TaskRequest("qpack_piqa", limit=3),), 0))


def test_a_hub_task_may_have_fewer_items_than_its_limit():
    result = accuracy.read(raw("lm_eval:arc_easy"), TasksSpec((TaskRequest("lm_eval:arc_easy", limit=10),), 0))
    assert len(result.tasks[0].samples) == 3
    with pytest.raises(EvaluateError):
        accuracy.read(raw("lm_eval:arc_easy", 0), TasksSpec((TaskRequest("lm_eval:arc_easy", limit=10),), 0))
