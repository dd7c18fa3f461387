"""The release in the registry, under an immutable version, and the alias moved to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qpack.core import seals
from qpack.core.errors import RegistryError
from qpack.core.jsonfile import JsonObject
from qpack.core.records import Published
from qpack.core.store import key_of
from qpack.pipeline.slots import Slot
from qpack.pipeline.stage import Stage
from qpack.pipeline.stages.package import RELEASE
from qpack.pipeline.stages.quantize import QUANTIZED

if TYPE_CHECKING:
    from qpack.pipeline.planned import Plan
    from qpack.pipeline.state import Build
    from registry.core.protocol import Registry

NAME = "publish"
PUBLISHED: Slot[Published] = Slot(NAME)
"""It is done when the registry has the release: nothing is in the store."""


def title(plan: Plan) -> str:
    """Where to."""
    ask = plan.recipe.publish
    return f"{ask.registry} registry as {plan.recipe.name}" + (f", alias {ask.alias}" if ask.alias else "")


def run(build: Build) -> Build:
    """Push it. Raises RegistryError."""
    from registry.core.protocol import PushRequest
    from registry.local.changes import whoami
    from registry.registries import open_registry
    from registry.release import release_folder

    ask, packaged, folder = build.plan.recipe.publish, build.require(RELEASE), build.context.registry
    registry = open_registry(ask.registry, str(folder))
    # A release that is there already isn't hashed again.
    note = f"published-{key_of({'release': packaged.key, 'registry': str(folder), 'ask': ask.model_dump()})}"
    if known := build.store.recall(note):
        _repair(build, known)
        if found := _still_there(registry, known):
            return build.having(PUBLISHED, found)
    published = registry.push(
        packaged.folder / "release",
        # Nothing writes to a finished result, so the registry may hard-link its files instead of copying them.
        PushRequest(build.plan.recipe.name, ask.version, ask.alias, actor=whoami(), note="qpack build", consume=True),
        annotations=release_folder.oci_annotations(packaged.result),
    )
    # What it took has another name in the registry now.
    seals.linked(packaged.folder)
    seals.linked(build.require(QUANTIZED).folder)
    build.store.remember(note, published.model_dump())
    return build.having(PUBLISHED, published)


def summary(build: Build) -> str:
    """The release's reference."""
    published = build.require(PUBLISHED)
    return published.reference + (" (already published)" if published.already_there else "")


def _repair(build: Build, known: JsonObject) -> None:
    """Replace damaged files of a published release by the store's copies.

    Raises RegistryError if those are damaged too. They are then taken out of the store, with everything made from them,
    so that the next build makes them again.
    """
    from registry.local import repair
    from registry.local.registry import LocalRegistry

    local, packaged, quantized = (
        LocalRegistry(build.context.registry),
        build.require(RELEASE),
        build.require(QUANTIZED),
    )
    reference = str(known.get("reference"))
    try:
        if not repair.is_suspect(local, reference):
            return
    except RegistryError:
        return  # Its manifest is gone or damaged: it is published again.
    try:
        for path in repair.repair_release(local, reference, packaged.folder / "release"):
            build.console.report(f"{reference}: {path} was damaged in the registry; replaced from the store")
    except repair.Lost as error:
        build.store.forget(RELEASE.stage, packaged.key)
        if repair.differing(quantized.folder / "checkpoint", quantized.result.files):
            for name in build.plan.made_from(QUANTIZED.stage):
                build.store.forget(build.plan.steps[name].stage, build.plan.key(name))
        raise RegistryError(
            error.code,
            error.what,
            hint="The damaged results were taken out of the store: run the same command again to rebuild them, or"
            " pull the release from another copy. Check the disk.",
        ) from error


def _still_there(registry: Registry, known: JsonObject) -> Published | None:
    from registry.local import repair
    from registry.local.registry import LocalRegistry

    published = Published.model_validate(known).model_copy(update={"already_there": True})
    try:
        if repair.is_suspect(LocalRegistry(Path(published.location)), published.reference):
            return None
        there = registry.resolve(published.reference)
        aliased = (
            published.alias is None or registry.resolve(f"{there.name}:{published.alias}").digest == published.digest
        )
    except RegistryError:
        return None
    return published if there.digest == published.digest and aliased else None


STAGE = Stage(NAME, title, run, summary=summary)
