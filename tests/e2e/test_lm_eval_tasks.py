"""The table of lm-eval's tasks against the task files of the locked lm-eval."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evals.measure import lm_eval_tasks
from evals.server.eval_environments import LM_EVAL
from evals.workers.lm_eval_tasks_job import TableAnswer, TableJob
from qpack.core.errors import EvaluateError
from qpack.runtime import environments, worker

pytestmark = [pytest.mark.engines, pytest.mark.slow("the table of tasks against lm-eval's own task files")]

WORKER = Path(lm_eval_tasks.__file__).parents[1] / "workers" / "lm_eval_tasks_worker.py"


def test_the_table_of_tasks_is_that_of_lm_eval(engine_home: Path, tmp_path: Path) -> None:
    environment = environments.ensure(environments.resolve(LM_EVAL, "cpu", engine_home), engine_home, print)
    call = worker.Call(environment, tmp_path, tmp_path / "log", 300, EvaluateError)
    text = lm_eval_tasks.written(worker.run(WORKER, TableJob(), TableAnswer, call))
    if os.environ.get("UPDATE_SNAPSHOTS"):
        lm_eval_tasks.DATA.write_text(text, "utf-8")
    assert lm_eval_tasks.DATA.read_text("utf-8") == text, "run `make tasks`"
