"""A build so far: what was asked, what helps, and every result that is there already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from evals.observe import PARTS, Observed
from qpack import envs, relief, worker
from qpack.console import Console
from qpack.envs import Environment
from qpack.errors import QuantizeError
from qpack.frozen import Frozen
from qpack.plan import Plan
from qpack.results import (
    Calibrated,
    Fetched,
    HeldOut,
    Judged,
    Published,
    Quantized,
    Release,
)
from qpack.store import Entry, Store
from qpack.worker import Relief

R = TypeVar("R", bound=Frozen)
T = TypeVar("T")


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
    baseline: Observed | None = None
    artifact: Observed | None = None
    judged: Entry[Judged] | None = None
    release: Entry[Release] | None = None
    published: Published | None = None

    @property
    def limit(self) -> float:
        """Seconds that one worker may take."""
        return self.plan.recipe.limits.stage_minutes * 60

    def missing(self, who: str) -> list[str]:
        """The parts of what is measured of `who` (baseline, artifact) that the store hasn't got."""
        asked = [part for part in PARTS if f"{who}.{part}" in self.plan.stages]
        return [part for part in asked if self.store.get(part, self.plan.key(f"{who}.{part}"), PARTS[part]) is None]

    def environment(self, name: str) -> Environment:
        """An environment, made now if it isn't there yet."""
        return envs.ensure(self.plan.environments[name], self.store.home, self.console.tell)

    def once(self, stage: str, kind: type[R], make: Callable[[Path], R]) -> Entry[R]:
        """The stage's stored result, or a new one."""
        return self.store.once(
            stage,
            self.plan.key(stage),
            kind,
            make,
            inputs=self.plan.stages[stage].inputs,
            waiting=lambda: self.console.tell("another qpack is doing this stage; waiting for it"),
        )

    def work(
        self, stage: str, environment: str, script: Path, job: Mapping[str, Any], out: Path, key: str | None = None
    ) -> dict[str, Any]:
        """Run a worker for a stage before evaluation. `key` names its log; else the stage's own does."""
        return worker.run(
            self.environment(environment),
            script,
            job,
            out=out,
            log=self.store.log(stage, key or self.plan.key(stage)),
            progress=self.console.progress,
            timeout=self.limit,
            error=QuantizeError,
            relief=Relief(lambda place: relief.knobs(self.plan, stage, place), relief.after(self.plan, stage)),
        )

    def entries(self, stage: str) -> dict[str, Entry[Any]]:
        """The stored results of a stage that is finished, by name; of baseline and artifact one for each part."""
        name = {"fetch": "fetched", "hold_out": "held_out", "calibrate": "calibrated", "quantize": "quantized",
                "judge": "judged", "package": "release"}.get(stage, stage)  # fmt: skip
        result = getattr(self, name, None)
        if isinstance(result, Observed):
            return {f"{stage}.{part}": entry for part, entry in result.parts().items()}
        return {stage: result} if isinstance(result, Entry) else {}


def need(value: T | None) -> T:
    """A result of an earlier stage. Stages run in order, so it is there."""
    if value is None:
        raise AssertionError("a stage ran before the ones that it needs")
    return value


def from_store(build: Build) -> Build:
    """The build with every result that the store has; nothing is run. For plans and reports."""
    from dataclasses import replace

    def stored(stage: str, kind: type[R]) -> Entry[R] | None:
        step = build.plan.stages.get(stage)
        return build.store.get(stage.rpartition(".")[2], step.key, kind) if step and step.key else None

    def observed(who: str) -> Observed | None:
        parts = {part: stored(f"{who}.{part}", kind) for part, kind in PARTS.items()}
        wanted = [part for part in PARTS if f"{who}.{part}" in build.plan.stages]
        return Observed(**parts, starts=0) if all(parts[part] for part in wanted) else None  # type: ignore[arg-type]

    return replace(
        build,
        fetched=stored("fetch", Fetched),
        held_out=stored("hold_out", HeldOut),
        calibrated=stored("calibrate", Calibrated),
        quantized=stored("quantize", Quantized),
        baseline=observed("baseline"),
        artifact=observed("artifact"),
        judged=stored("judge", Judged),
    )
