"""A build so far: its plan, its context, and every result that is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from evals.gates.gates import SPEED_GATES
from evals.parts.collect_evidence import PARTS, CollectedEvidence, undisturbed
from qpack.core.console import Console
from qpack.core.frozen import Frozen
from qpack.core.store import Entry, Inputs, Store
from qpack.pipeline.context import Context
from qpack.pipeline.planned import Plan
from qpack.pipeline.slots import Slot
from qpack.runtime.environments import Environment

R = TypeVar("R", bound=Frozen)
T = TypeVar("T")


@dataclass(frozen=True)
class Build:
    """Frozen: a stage returns a new one with its result in it."""

    plan: Plan
    context: Context
    allow_failed_gates: bool = False
    results: Mapping[str, Any] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        """The work store."""
        return self.context.store

    @property
    def console(self) -> Console:
        """Where progress goes."""
        return self.context.console

    @property
    def limit(self) -> float:
        """Seconds that one worker may take."""
        return self.plan.recipe.limits.stage_minutes * 60

    def get(self, slot: Slot[T]) -> T | None:
        """A stage's result; None if the stage hasn't run, or had nothing to do."""
        found: T | None = self.results.get(slot.stage)
        return found

    def require(self, slot: Slot[T]) -> T:
        """A stage's result. Raises AssertionError if the stage hasn't run: stages run in order."""
        found = self.get(slot)
        if found is None:
            raise AssertionError(f"a stage ran before {slot.stage}, which it needs")
        return found

    def having(self, slot: Slot[T], result: T | None) -> Build:
        """The build with a stage's result; as it is for None."""
        return self if result is None else replace(self, results={**self.results, slot.stage: result})

    def environment(self, name: str) -> Environment:
        """An environment of the plan; created if missing."""
        return self.context.environment(self.plan.environments[name])

    def log(self, stage: str) -> Path:
        """The log of a stage's workers."""
        return self.store.log(stage, self.plan.key(stage))

    def once(self, stage: str, kind: type[R], make: Callable[[Path], R]) -> Entry[R]:
        """The stage's stored result, or a new one."""
        return self.keep(kind, make, self.plan.steps[stage].inputs, self.plan.key(stage))

    def keep(
        self,
        kind: type[R],
        make: Callable[[Path], R],
        inputs: Inputs,
        key: str,
        uses: Sequence[Entry[Any]] | None = None,
    ) -> Entry[R]:
        """The stored result with these inputs, or a new one. `uses` (default: by the inputs) are the results that it is
        made from.
        """
        used = self.uses(inputs) if uses is None else uses
        return self.store.once(inputs["stage"], key, kind, make, inputs=inputs, report=self.console.report, uses=used)

    def stored(self, step: str, kind: type[R]) -> Entry[R] | None:
        """The stored result of a step; None if there is none."""
        found = self.plan.steps.get(step)
        return self.store.get(found.stage, found.key, kind) if found and found.key else None

    def observed(self, stage: str) -> CollectedEvidence | None:
        """The stored evidence of a model; None if a part of it is missing."""
        parts = {part: self.stored(f"{stage}.{part}", kind) for part, kind in PARTS.items()}
        wanted = [part for part in PARTS if f"{stage}.{part}" in self.plan.steps]
        return CollectedEvidence(**parts, starts=0) if all(parts[part] for part in wanted) else None  # type: ignore[arg-type]

    def missing(self, stage: str) -> list[str]:
        """The parts of a model's evidence that the store doesn't have."""
        steps = {part: step for part in PARTS if (step := self.plan.steps.get(f"{stage}.{part}")) is not None}
        return [
            part
            for part, step in steps.items()
            if self.store.get(part, self.plan.key(step.name), PARTS[part], self.uses(step.inputs), self.usable) is None
        ]

    def usable(self, part: Frozen) -> bool:
        """Whether a stored part of the evidence answers what the recipe asks: a gate on speed needs one that was
        measured on a machine that did little else.
        """
        return undisturbed(part) or SPEED_GATES.isdisjoint(self.plan.recipe.gates.bounds())

    def uses(self, inputs: Inputs) -> list[Entry[Any]]:
        """The results so far that a step with these inputs is made from."""
        keys = {*inputs.get("after", {}).values(), *inputs.get("stop", {}).get("after", {}).values()}
        found = {entry.key: entry for stage in self.results for entry in self.entries(stage).values()}
        return [entry for key, entry in found.items() if key in keys]

    def entries(self, stage: str) -> dict[str, Entry[Any]]:
        """The stored results of a finished stage, by step; evidence has one for each part."""
        result = self.results.get(stage)
        if isinstance(result, CollectedEvidence):
            return {f"{stage}.{part}": entry for part, entry in result.parts().items()}
        return {stage: result} if isinstance(result, Entry) else {}

    @property
    def steps(self) -> dict[str, Entry[Any]]:
        """The stored results of every finished step of the plan."""
        found = {name: entry for stage in self.results for name, entry in self.entries(stage).items()}
        return {name: entry for name, entry in found.items() if name in self.plan.steps}
