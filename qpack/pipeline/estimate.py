"""What a build would run, and its time and size: from the store, from headers, from earlier runs on this machine.

A time is the median of earlier runs of the same stage on this machine; without any there is none. The artifact's size
follows from shapes and bits.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from qpack.core import seals
from qpack.core.store import Store, envelope_of
from qpack.pipeline.planned import Plan
from quantize.preflight import sizes


@dataclass(frozen=True)
class StepEstimate:
    """One step: done or to do; `seconds` is the median of earlier runs, if there are any."""

    stage: str
    key: str | None
    done: bool
    seconds: float | None
    basis: str


def steps(plan: Plan, store: Store) -> list[StepEstimate]:
    """Every keyed step of the plan, in order."""
    found = []
    for name, step in plan.steps.items():
        done = step.key is not None and store.holds(step.stage, step.key, seals.GLANCE)
        took = earlier(store, step.stage)
        basis = (
            "" if not took else f"median of {len(took)} earlier run{'s' if len(took) > 1 else ''} here, of any model"
        )
        found.append(StepEstimate(name, step.key, done, statistics.median(took) if took else None, basis))
    return found


def earlier(store: Store, stage: str) -> list[float]:
    """Seconds that a stage took before, at most the newest twenty."""
    folders = sorted((store.home / "store" / stage).glob("*"), key=lambda path: path.lstat().st_mtime)[-20:]
    return [envelope["seconds"] for folder in folders if (envelope := envelope_of(folder)) is not None]


def artifact_bytes(plan: Plan) -> int | None:
    """Bytes of the artifact's weights; None without headers (a hub that isn't reached)."""
    return sizes.weights_bytes(plan.source, plan.request) if plan.source.tensors else None
