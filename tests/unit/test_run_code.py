"""Code that models write is executed only where the recipe says so."""

from __future__ import annotations

from evals.measure import suite
from evals.measure.suite import TaskRequest, expand


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
