"""The tasks and groups of the locked lm-eval: what a name stands for, known before anything runs.

`lm_eval_tasks.json` is written from lm-eval's task files by `make tasks`; a test holds it against them. lm-eval in an
environment of the user's own may have others.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path

from evals.workers.lm_eval_tasks_job import TableAnswer, TaskGroup, TaskKind
from qpack.runtime.workerlib import qpack_protocol

DATA = Path(__file__).parent / "lm_eval_tasks.json"
_MOST = 20_000


@functools.cache
def table() -> TableAnswer:
    """The whole table."""
    return qpack_protocol.decode(TableAnswer, json.loads(DATA.read_text("utf-8")))


def written(found: TableAnswer) -> str:
    """The file's content: one task, group or kind per line."""
    plain = asdict(found)
    kinds = ",\n".join(f"  {json.dumps(kind)}" for kind in plain["kinds"])
    tasks = ",\n".join(f"  {json.dumps(name)}: {kind}" for name, kind in plain["tasks"].items())
    groups = ",\n".join(f"  {json.dumps(name)}: {json.dumps(group)}" for name, group in plain["groups"].items())
    return (
        f'{{"version": {json.dumps(found.version)},\n"kinds": [\n{kinds}\n],\n"tasks": {{\n{tasks}\n}},\n'
        f'"groups": {{\n{groups}\n}}}}\n'
    )


def known(name: str) -> bool:
    """Whether a task, group or tag has this name."""
    found = table()
    return name in found.tasks or name in found.groups


def leaves(name: str) -> tuple[str, ...]:
    """The tasks that a name stands for, each once: the task itself, or those of a group and of the groups in it."""
    found, todo = table(), [name]
    done: dict[str, None] = {}
    seen: set[str] = set()
    while todo and len(seen) < _MOST:
        first = todo.pop(0)
        if first in seen:
            continue
        seen.add(first)
        if first in found.groups and not (first in found.tasks and first != name):
            todo = [*found.groups[first].tasks, *todo]
        elif first in found.tasks:
            done[first] = None
    return tuple(done)


def kind(task: str) -> TaskKind:
    """What a single task is. Raises KeyError for another name."""
    found = table()
    return found.kinds[found.tasks[task]]


def group(name: str) -> TaskGroup | None:
    """A group or tag; None for a task."""
    found = table()
    return None if name in found.tasks else found.groups.get(name)


def pooled_metric(name: str, metric: str | None = None) -> str | None:
    """The metric that one score of a whole group has, its items taken together: `metric`, or the first that lm-eval
    aggregates over the group, if every task of the group has it for each item. None where the group has no such score.
    """
    found = group(name)
    if found is None:
        return None
    kinds = {id(each): each for each in map(kind, leaves(name))}.values()
    for wanted in (metric,) if metric else found.metrics:
        if kinds and all(each.metrics.get(wanted) in ("item", "list") for each in kinds):
            return wanted
    return None


def scored(name: str, metric: str | None = None) -> tuple[str, ...]:
    """The names that get a score each when `name` is asked: itself, or the children of a group that has no score."""
    found = group(name)
    if found is None or pooled_metric(name, metric):
        return (name,)
    inner = [each for child in found.tasks for each in scored(child, metric)]
    return tuple(dict.fromkeys(inner))
