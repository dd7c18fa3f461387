"""A build: every stage in order. Each takes the build so far and adds one finished result to it."""

from __future__ import annotations

import time

from qpack.core.console import seconds
from qpack.pipeline import estimate
from qpack.pipeline.stage import Stage
from qpack.pipeline.stages.catalog import STAGES
from qpack.pipeline.state import Build


def run(build: Build, stages: tuple[Stage, ...] = STAGES) -> Build:
    """Run every one of `stages` that isn't finished: all of them, or the first few. Raises what the stage raises; what
    was finished stays in the store.
    """
    wanted = [stage for stage in stages if stage.wanted(build.plan)]
    for number, stage in enumerate(wanted, 1):
        build.console.stage(number, len(wanted), stage.name, stage.title(build.plan))
        started, ready = time.monotonic(), _ready(build)
        build = stage.run(build)
        entries = build.entries(stage.name)
        if _ready(build) == ready:  # else the time is that of making an environment, too
            estimate.remember(build.plan, build.store, entries)
        reused = bool(entries) and all(entry.reused for entry in entries.values())
        took = "from the store" if reused else seconds(time.monotonic() - started)
        build.console.end("; ".join(filter(None, (took, stage.summary(build)))))
    return build


def _ready(build: Build) -> list[bool]:
    return [environment.ready for environment in build.plan.environments.values()]


def from_store(build: Build) -> Build:
    """The build with every result that the store has; nothing is run. For plans and reports."""
    for stage in STAGES:
        build = stage.stored(build)
    return build
