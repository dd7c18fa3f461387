"""The release folder: artifact, manifests, card and licence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qpack.core import seals
from qpack.core.records import Release
from qpack.pipeline.slots import Slot
from qpack.pipeline.stage import Stage
from qpack.pipeline.stages.fetch import FETCHED
from qpack.pipeline.stages.judge import JUDGED
from qpack.pipeline.stages.quantize import QUANTIZED

if TYPE_CHECKING:
    from qpack.core.store import Entry
    from qpack.pipeline.stage_keys import Known, Step
    from qpack.pipeline.state import Build

NAME = "package"
RELEASE: Slot[Entry[Release]] = Slot(NAME)
CODE = {NAME: (f"{__name__}:make",)}


def steps(known: Known, before: Mapping[str, Step]) -> Iterator[Step]:
    """The release: its key waits for the verdict, since a release whose gates failed is marked."""
    from qpack.pipeline import stage_keys

    licence = known.source.licence_file
    inputs = {
        "recipe": known.text,
        "ask": known.recipe.model_dump(mode="json"),
        "licence": known.digest(licence) if licence else "",
        "environments": stage_keys.digests(known, *known.environments),
    }
    late = ({"forced": True}, {"forced": False})
    yield stage_keys.step(NAME, before, (JUDGED.stage,), known.code.closure(CODE[NAME]), inputs, late)


def run(build: Build) -> Build:
    """Lay it out. Raises QuantizeError."""
    forced = build.require(JUDGED).result.verdict.outcome != "pass"
    inputs, key = build.plan.late[NAME].keyed(forced=forced)
    # It is made from every result before it.
    entry = build.keep(Release, lambda out: make(build, out), inputs, key, uses=tuple(build.steps.values()))
    # The release has the artifact's files by another name.
    seals.linked(build.require(QUANTIZED).folder)
    return build.having(RELEASE, entry)


def make(build: Build, out: Path) -> Release:
    """Lay the release out in `out/release`. Raises QuantizeError."""
    from qpack.pipeline import release_records
    from registry.release import release_folder

    forced = build.require(JUDGED).result.verdict.outcome != "pass"
    made, licence = release_records.release(build, forced=forced), build.plan.source.licence_file
    folder = out / "release"
    folder.mkdir()
    release_folder.lay_out(
        folder,
        checkpoint=build.require(QUANTIZED).folder / "checkpoint",
        source=build.require(FETCHED).folder / "checkpoint",
        release=made,
        serving=release_records.published_serving(build),
        license_text=licence.read_text(errors="replace") if licence else None,
    )
    return made


STAGE = Stage(NAME, title=lambda _: "artifact, manifests, card", run=run, steps=steps, code=CODE)
