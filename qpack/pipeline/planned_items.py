"""How many items the accuracy gates of a recipe take, from what earlier verdicts on this machine saw of its tasks."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from evals.gates.gates import ACCURACY_GATES, TASK_GATES
from evals.measure import suite
from qpack.core.records import TaskDifference
from qpack.core.store import Store
from qpack.pipeline.planned import Plan
from qpack.pipeline.stages.judge import JUDGED
from qpack.recipe import eval_requests

if TYPE_CHECKING:
    from evals.stats.power import Seen

_NEWEST = 20


@dataclass(frozen=True)
class PlannedItems:
    """A gate's items: `asked` and `needed` per task (None: all items, or nobody knows). `task` is empty for a gate on
    the mean over tasks. `basis` says what the number is from.
    """

    gate: str
    task: str
    bound: float
    asked: int | None
    needed: int | None
    basis: str

    @property
    def enough(self) -> bool | None:
        """Whether as many are asked as are needed; None where one of the two isn't known."""
        return None if self.asked is None or self.needed is None else self.asked >= self.needed


def planned(plan: Plan, store: Store) -> tuple[PlannedItems, ...]:
    """One entry per accuracy gate, or per task of a gate on each task."""
    bounds = {gate: bound for gate, bound in plan.recipe.gates.bounds().items() if gate in ACCURACY_GATES}
    if not bounds:
        return ()
    # scipy: not loaded unless a gate needs it.
    from evals.stats import power

    seen, found = _seen(store), []
    tasks = eval_requests.tasks(plan.recipe)
    asked = {task.name: suite.counted(task)[1] for task in tasks}
    for gate, bound in bounds.items():
        groups = [[task.name] for task in tasks] if gate in TASK_GATES else [[task.name for task in tasks]]
        for names in groups:
            label = names[0] if gate in TASK_GATES else ""
            fewest = [asked[name] for name in names]
            least = min(filter(None, fewest), default=None) if None not in fewest else None
            known = [seen[name] for name in names if name in seen]
            if len(known) < len(names):
                missing = [name for name in names if name not in seen]
                basis = f"no verdict on {', '.join(missing[:3])} yet"
                found.append(PlannedItems(gate, label, bound, least, None, basis))
                continue
            past = [_median(each) for each in known]
            limit = power.drop_bound(gate, bound, statistics.fmean(each.baseline for each in past))
            needed = power.items_needed(past, limit)
            earlier = min(map(len, known))
            basis = f"{earlier} earlier verdict{'s' if earlier > 1 else ''}, if nothing was lost"
            found.append(PlannedItems(gate, label, bound, least, needed, basis))
    return tuple(found)


def _median(seen: list[Seen]) -> Seen:
    from evals.stats.power import Seen

    return Seen(
        variance=statistics.median(each.variance for each in seen),
        baseline=statistics.median(each.baseline for each in seen),
        drop=statistics.median(each.drop for each in seen),
    )


def _seen(store: Store) -> dict[str, list[Seen]]:
    """{task: what each of the newest verdicts saw of it}."""
    from evals.stats.power import Seen, variance_of

    found: dict[str, list[Seen]] = defaultdict(list)
    for _, envelope in list(store.stored(JUDGED.stage))[-_NEWEST:]:
        for task in _tasks(envelope["result"]):
            variance = variance_of(task.drop)
            if variance is not None:
                found[task.task].append(Seen(variance, task.baseline, task.drop.value))
    return found


def _tasks(result: Any) -> list[TaskDifference]:
    """The tasks of a stored verdict; none of one that can't be read."""
    try:
        return [TaskDifference.model_validate(task) for task in result["comparison"]["tasks"]]
    except (KeyError, TypeError, ValidationError):
        return []
