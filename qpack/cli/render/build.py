"""`qpack build`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpack.cli.render import failure
from qpack.cli.render.figures import figures
from qpack.cli.render.text import emit
from qpack.pipeline.stages.judge import JUDGED
from qpack.pipeline.stages.package import RELEASE
from qpack.pipeline.stages.publish import PUBLISHED

if TYPE_CHECKING:
    from qpack.core.errors import QpackError
    from qpack.pipeline.stage import Stage
    from qpack.pipeline.state import Build


def built(build: Build, *, as_json: bool) -> None:
    """The published release and its figures."""
    published, release = build.require(PUBLISHED), build.require(RELEASE)
    nothing = published.already_there and all(entry.reused for entry in build.steps.values())
    if as_json:
        emit(
            {
                "published": published.model_dump(),
                "nothing_to_do": nothing,
                "verdict": release.result.verdict.model_dump(),
            }
        )
        return
    if nothing:
        print(f"Nothing to do: {published.reference} is published with these inputs.")
    else:
        print(f"Published {published.reference} ({published.digest[:19]}) in {published.location}")
        if release.result.forced:
            print("Its gates did not pass; the release is marked.")
    figures(release.result)
    print(f"\nSee `qpack show {published.reference}` and `qpack report {published.reference}`.")


def refused(error: QpackError, build: Build) -> None:
    """With --json: why a build ends with gates that don't pass, and the verdict with every figure."""
    failure.refused(error, verdict=build.require(JUDGED).result.verdict.model_dump())


def stopped(build: Build, stage: Stage, *, as_json: bool) -> None:
    """Where the results of a build that stops after a stage are."""
    folders = {name: str(entry.folder) for name, entry in build.steps.items()}
    if as_json:
        emit({"until": stage.name, "results": folders})
        return
    print(f"Stopped after {stage.name}; nothing is published.")
    for name, folder in folders.items():
        print(f"  {name}: {folder}")
