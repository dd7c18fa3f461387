"""Claims about a sweep's jobs: what they ask a cluster for, and how a job that built nothing is told."""

from __future__ import annotations

import json

from evals.workers.ray_jobs_job import Ended, Resources
from qpack.core.errors import EvaluateError, RecipeError
from qpack.core.problems import Code, Location, Problem
from qpack.pipeline.ray_sweep import resources, why_not


def test_a_job_takes_its_gpus_and_on_a_cpu_all_cores_unless_told():
    assert resources("hopper", 2, None, 64) == Resources(num_cpus=1, num_gpus=2)
    assert resources("cpu", 1, None, 8) == Resources(num_cpus=8, num_gpus=0)
    assert resources("cpu", 1, 2, 8) == Resources(num_cpus=2, num_gpus=0)


def test_why_a_job_built_nothing_is_its_own_error_with_its_own_exit_code():
    problem = Problem(Code("no-such-key", "A title"), "unknown key", Location("r.yaml", 3, key=("a", 0)), "Known: b.")
    told = {
        "rows": [],
        "not_built": [{"settings": "a=1", "code": "bad-recipe", "error": "1", "problems": [problem.as_json()]}],
    }
    error = why_not(Ended(2, json.dumps(told), ""))
    assert (type(error), error.code.name) == (RecipeError, "bad-recipe")
    assert [found.as_json() for found in error.problems] == [problem.as_json()]


def test_a_job_that_died_is_told_with_its_last_words():
    error = why_not(Ended(None, "", "WorkerCrashedError: the worker died"))
    assert isinstance(error, EvaluateError)
    assert "exit code None): WorkerCrashedError: the worker died" in error.what


def test_a_job_that_printed_something_else_is_told_with_its_last_words():
    for printed in ("[]", '{"not_built": [{}]}', '{"not_built": [{"error": "x", "problems": 3}]}'):
        assert "exit code 4): out of luck" in why_not(Ended(4, printed, "out of luck")).what
