"""Job and answer of the worker that lists lm-eval's tasks; both sides import them (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional


@dataclass(frozen=True)
class TableJob:
    """Nothing is asked but the table."""

    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class TaskKind:
    """What tasks of one kind have in common: lm-eval's `output` type (None where code decides), the `metrics` in their
    order and how each scores an item (`item`: a number, `list`: several, `corpus`: nothing by itself, so that models
    can't be paired), examples per prompt (None: no own number), and the packages that the environment lacks.
    """

    output: Optional[str]
    metrics: dict[str, str]
    few_shot: Optional[int]
    lacks: tuple[str, ...]


@dataclass(frozen=True)
class TaskGroup:
    """Names of tasks and groups, and the metrics that lm-eval aggregates over them."""

    tasks: tuple[str, ...]
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class TableAnswer:
    """Every task by name, with the index of its kind, and every group and tag: the content of
    evals/measure/lm_eval_tasks.json.
    """

    version: str
    kinds: tuple[TaskKind, ...]
    tasks: dict[str, int]
    groups: dict[str, TaskGroup]
