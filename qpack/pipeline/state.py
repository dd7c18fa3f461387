"""A build so far: what was asked, what helps, and every result that is there already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from evals.parts.collect_evidence import PARTS, CollectedEvidence
from qpack.core.console import Console
from qpack.core.frozen import Frozen
from qpack.core.records import Calibrated, Fetched, HeldOut, Judged, Published, Quantized, Release
from qpack.core.store import Entry, Inputs, Store
from qpack.pipeline import memory_hints as relief
from qpack.pipeline.needed import need as need
from qpack.pipeline.plan import Plan
from qpack.runtime import environments
from qpack.runtime.environments import Environment
from qpack.runtime.worker import Relief

R = TypeVar("R", bound=Frozen)


@dataclass(frozen=True)
class Build:
    """Frozen: a stage returns a new one with its result in it."""

    plan: Plan
    store: Store
    console: Console
    registry: Path
    allow_failed_gates: bool = False
    fetched: Entry[Fetched] | None = None
    held_out: Entry[HeldOut] | None = None
    calibrated: Entry[Calibrated] | None = None
    quantized: Entry[Quantized] | None = None
    baseline: CollectedEvidence | None = None
    artifact: CollectedEvidence | None = None
    judged: Entry[Judged] | None = None
    release: Entry[Release] | None = None
    published: Published | None = None

    @property
    def limit(self) -> float:
        """Seconds that one worker may take."""
        return self.plan.recipe.limits.stage_minutes * 60

    def missing(self, who: str) -> list[str]:
        """The parts of what is measured of `who` (baseline, artifact) that the store hasn't got."""
        steps = {part: step for part in PARTS if (step := self.plan.stages.get(f"{who}.{part}")) is not None}
        return [
            part
            for part, step in steps.items()
            if self.store.get(part, self.plan.key(step.name), PARTS[part], self.uses(step.inputs)) is None
        ]

    def environment(self, name: str) -> Environment:
        """An environment, made now if it isn't there yet."""
        return environments.ensure(self.plan.environments[name], self.store.home, self.console.tell)

    def once(self, stage: str, kind: type[R], make: Callable[[Path], R]) -> Entry[R]:
        """The stage's stored result, or a new one."""
        inputs = self.plan.stages[stage].inputs
        return self.store.once(
            stage,
            self.plan.key(stage),
            kind,
            make,
            inputs=inputs,
            tell=self.console.tell,
            uses=self.uses(inputs),
        )

    def uses(self, inputs: Inputs) -> list[Entry[Any]]:
        """The results so far that a step with these inputs is made from."""
        stop = inputs.get("stop", {})
        keys = {*inputs.get("after", {}).values(), *([stop["baseline"]] if "baseline" in stop else [])}
        stages = ("fetch", "hold_out", "calibrate", "quantize", "baseline", "artifact", "judge")
        found = {entry.key: entry for stage in stages for entry in self.entries(stage).values() if entry.key in keys}
        return list(found.values())

    def log(self, stage: str) -> Path:
        """The log of a stage's workers; a rehearsal's goes by the key of what it rehearses."""
        return self.store.log(stage, self.plan.key("quantize" if stage == "rehearse" else stage))

    def relief(self, stage: str) -> Relief:
        """What to turn when a worker of this stage runs out of memory."""
        return Relief(lambda place: relief.knobs(self.plan, stage, place), relief.after(self.plan, stage))

    def entries(self, stage: str) -> dict[str, Entry[Any]]:
        """The stored results of a stage that is finished, by name; of baseline and artifact one for each part."""
        name = {"fetch": "fetched", "hold_out": "held_out", "calibrate": "calibrated", "quantize": "quantized",
                "judge": "judged", "package": "release"}.get(stage, stage)  # fmt: skip
        result = getattr(self, name, None)
        if isinstance(result, CollectedEvidence):
            return {f"{stage}.{part}": entry for part, entry in result.parts().items()}
        return {stage: result} if isinstance(result, Entry) else {}


def licensed(plan: Plan, entry: Entry[Fetched]) -> Entry[Fetched]:
    """The fetched model with the license and base model that the recipe names, which aren't part of what is stored."""
    model = plan.recipe.model
    given = {"license": model.license, "base_model": model.base_model}
    update = {name: value for name, value in given.items() if value}
    return replace(entry, result=entry.result.model_copy(update=update)) if update else entry


def from_store(build: Build) -> Build:
    """The build with every result that the store has; nothing is run. For plans and reports."""

    def stored(stage: str, kind: type[R]) -> Entry[R] | None:
        step = build.plan.stages.get(stage)
        return build.store.get(stage.rpartition(".")[2], step.key, kind) if step and step.key else None

    def observed(who: str) -> CollectedEvidence | None:
        parts = {part: stored(f"{who}.{part}", kind) for part, kind in PARTS.items()}
        wanted = [part for part in PARTS if f"{who}.{part}" in build.plan.stages]
        return CollectedEvidence(**parts, starts=0) if all(parts[part] for part in wanted) else None  # type: ignore[arg-type]

    return replace(
        build,
        fetched=licensed(build.plan, fetched) if (fetched := stored("fetch", Fetched)) else None,
        held_out=stored("hold_out", HeldOut),
        calibrated=stored("calibrate", Calibrated),
        quantized=stored("quantize", Quantized),
        baseline=observed("baseline"),
        artifact=observed("artifact"),
        judged=stored("judge", Judged),
    )
