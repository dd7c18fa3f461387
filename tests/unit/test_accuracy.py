"""What the lm-eval worker hands back is held against what was asked for."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from evals.measure import accuracy
from evals.measure.eval_specs import TasksSpec
from evals.measure.suite import TaskRequest
from evals.workers.lm_eval_job import Answer, ScoredItem, ScoredTask
from qpack.core.errors import EvaluateError
from qpack.runtime.workerlib import qpack_protocol
from tests.codes import coded


def raw(name: str = "qpack_piqa", count: int = 3) -> Answer:
    """A worker's result of one task with `count` items."""
    samples = tuple(ScoredItem(f"{name}:{i}:0123456789ab", float(i % 2)) for i in range(count))
    return Answer("0.4.13", False, count, (ScoredTask(name, "1.0", "acc_norm", 0, count, 0, 0.5, samples, None),))


def test_samples_keep_their_order_and_scores():
    result = accuracy.read(raw(), TasksSpec((TaskRequest("qpack_piqa", limit=3),), 0))
    assert [sample.score for sample in result.tasks[0].samples] == [0.0, 1.0, 0.0]
    assert [sample.id for sample in result.tasks[0].samples] == [f"qpack_piqa:{i}:0123456789ab" for i in range(3)]


@pytest.mark.parametrize("limit", [2, 4, None])
def test_another_number_of_items_than_asked_for_is_an_error(limit: int | None):
    with pytest.raises(EvaluateError, check=coded("task-results"), match=r"\b3\b"):
        accuracy.read(raw(), TasksSpec((TaskRequest("qpack_piqa", limit=limit),), 0))


def test_a_limit_above_the_data_means_all_of_it():
    result = accuracy.read(raw("qpack_openbookqa", 500), TasksSpec((TaskRequest("qpack_openbookqa", limit=900),), 0))
    assert len(result.tasks[0].samples) == 500


def test_an_item_scored_twice_is_an_error():
    task = raw().tasks[0]
    twice = replace(task, samples=(task.samples[0], *task.samples[:2]))
    with pytest.raises(EvaluateError, check=coded("task-results"), match="twice"):
        accuracy.read(replace(raw(), tasks=(twice,)), TasksSpec((TaskRequest("qpack_piqa", limit=3),), 0))


def test_a_missing_task_is_an_error():
    with pytest.raises(EvaluateError, check=coded("task-results")):
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


def test_a_score_that_is_not_finite_is_an_error_that_names_it():
    plain = json.loads(json.dumps(qpack_protocol.encode(raw())))
    plain["tasks"][0]["samples"][1]["score"] = math.nan
    with pytest.raises(qpack_protocol.Mismatch, match=r"^tasks\[0\]\.samples\[1\]\.score: has to be a finite number"):
        qpack_protocol.decode(Answer, plain)


def test_a_hub_task_may_have_fewer_items_than_its_limit():
    result = accuracy.read(raw("lm_eval:arc_easy"), TasksSpec((TaskRequest("lm_eval:arc_easy", limit=10),), 0))
    assert len(result.tasks[0].samples) == 3
    with pytest.raises(EvaluateError):
        accuracy.read(raw("lm_eval:arc_easy", 0), TasksSpec((TaskRequest("lm_eval:arc_easy", limit=10),), 0))
