"""The stages of a build, in order. Each takes the build so far and adds one finished result to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from evals.report import layer_errors
from qpack.core import seals
from qpack.core.console import seconds
from qpack.core.errors import RegistryError
from qpack.core.records import Calibrated, Fetched, HeldOut, Judged, Published, Quantized, Release
from qpack.core.store import key_of
from qpack.pipeline import baselines, measuring, messages, requirements
from qpack.pipeline.needed import need
from qpack.pipeline.state import Build, licensed
from registry.core.protocol import PushRequest, Registry
from registry.local import repair
from registry.local.changes import whoami
from registry.local.registry import LocalRegistry
from registry.registries import open_registry
from registry.release import release_folder


def fetch(build: Build) -> Build:
    """The source model as a transformers checkpoint: converted from GGUF, or linked from where it lies."""
    source = build.plan.source

    def make(out: Path) -> Fetched:
        if source.kind == "gguf":
            from qpack.pipeline.stages import convert

            return convert.make(build, source.license, out)
        from qpack.pipeline.stages import fetch

        return fetch.make(source, source.license, out)

    return replace(build, fetched=licensed(build.plan, build.once("fetch", Fetched, make)))


def hold_out(build: Build) -> Build:
    """Held-out text as windows of tokens, set aside before the calibration chooses its rows."""
    from qpack.pipeline.stages import hold_out

    return replace(build, held_out=build.once("hold_out", HeldOut, lambda out: hold_out.make(build, out)))


def calibrate(build: Build) -> Build:
    """Calibration texts as rows of tokens, with a record of every text that was used, cut or left out."""
    from qpack.pipeline.stages import calibrate

    if (ask := build.plan.recipe.calibration) is None:
        return build
    return replace(build, calibrated=build.once("calibrate", Calibrated, lambda out: calibrate.make(build, ask, out)))


def quantize(build: Build) -> Build:
    """The artifact, made by the engine in its own environment."""
    from qpack.pipeline.stages import quantize

    def make(out: Path) -> Quantized:
        return quantize.make(build, out).model_copy(update=requirements.expected(build.plan))

    made = build.once("quantize", Quantized, make)
    if (told := layer_errors.warning(made.result.sites)) is not None:
        build.console.tell(f"warning: {told}")
    return replace(build, quantized=made)


def baseline(build: Build) -> Build:
    """The source model's evidence, from one server; from the store when any recipe asked the same before."""
    for why in baselines.refused(build.plan, build.store):
        build.console.tell(why)
    return replace(build, baseline=measuring.baseline(build))


def artifact(build: Build) -> Build:
    """The artifact's evidence, from one server started the same way."""
    return replace(build, artifact=measuring.artifact(build))


def judge(build: Build) -> Build:
    """Artifact against baseline, held against the recipe's gates."""

    def make(_: Path) -> Judged:
        # scipy: not loaded unless there is something to judge.
        from qpack.pipeline.stages import judge

        return judge.make(build)

    build = replace(build, judged=build.once("judge", Judged, make))
    found = need(build.judged).result.verdict
    if found.outcome != "pass" and not build.allow_failed_gates:
        raise messages.refusal(build, found)
    return build


def package(build: Build) -> Build:
    """The release folder: artifact, manifests, card and licence."""
    from qpack.pipeline.stages import package

    inputs = build.plan.packaging(forced=need(build.judged).result.verdict.outcome != "pass")
    entry = build.store.once(
        "package",
        key_of(inputs),
        Release,
        lambda out: package.make(build, out),
        inputs=inputs,
        tell=build.console.tell,
        uses=build.uses({"after": {name: step.key for name, step in build.plan.stages.items()}}),
    )
    # The release has the artifact's files by another name.
    seals.linked(need(build.quantized).folder)
    return replace(build, release=entry)


def publish(build: Build) -> Build:
    """The release in the registry, under an immutable version, and the alias moved to it."""
    ask, packaged = build.plan.recipe.publish, need(build.release)
    registry = open_registry(ask.registry, str(build.registry))
    # A release that is there already isn't hashed again.
    note = f"published-{key_of({'release': packaged.key, 'registry': str(build.registry), 'ask': ask.model_dump()})}"
    if known := build.store.recall(note):
        _mend(build, known)
        if found := _still_there(registry, known):
            return replace(build, published=found)
    published = registry.push(
        packaged.folder / "release",
        # Nothing writes to a finished result, so the registry may hard-link its files instead of copying them.
        PushRequest(build.plan.recipe.name, ask.version, ask.alias, actor=whoami(), note="qpack build", consume=True),
        annotations=release_folder.oci_annotations(packaged.result),
    )
    # What it took has another name in the registry now.
    seals.linked(packaged.folder)
    seals.linked(need(build.quantized).folder)
    build.store.remember(note, published.model_dump())
    return replace(build, published=published)


STAGES: tuple[Callable[[Build], Build], ...] = (
    fetch,
    hold_out,
    calibrate,
    quantize,
    baseline,
    artifact,
    judge,
    package,
    publish,
)


def run(build: Build, stages: tuple[Callable[[Build], Build], ...] = STAGES) -> Build:
    """Run every one of `stages` that isn't finished: all of them, or the first few. Raises what the stage raises; what
    was finished stays in the store.
    """
    for number, stage in enumerate(stages, 1):
        name = stage.__name__
        build.console.stage(number, len(stages), name, messages.about(build.plan, name))
        started = time.monotonic()
        build = stage(build)
        entries = build.entries(name)
        reused = bool(entries) and all(entry.reused for entry in entries.values())
        build.console.end(
            f"{'from the store' if reused else seconds(time.monotonic() - started)}{messages.summary(build, name)}"
        )
    return build


def _mend(build: Build, known: dict[str, Any]) -> None:
    """Replace what was found damaged of a published release by the store's copy.

    Raises RegistryError when that is damaged too. Then it is taken out of the store, with all that came of it, so that
    the next build makes it anew.
    """
    local, packaged, quantized = LocalRegistry(build.registry), need(build.release), need(build.quantized)
    reference = str(known.get("reference"))
    try:
        if not repair.is_suspect(local, reference):
            return
    except RegistryError:
        return  # Its manifest is gone or damaged: it is published again.
    try:
        for path in repair.repair_release(local, reference, packaged.folder / "release"):
            build.console.tell(f"{reference}: {path} was damaged in the registry, and is replaced from the store")
    except repair.Lost as error:
        gone = [("package", packaged.key)]
        if repair.differing(quantized.folder / "checkpoint", quantized.result.files):
            parts = ("performance", "language", "continuations", "needle", "accuracy")
            steps = ("quantize", *(f"artifact.{part}" for part in parts), "judge")
            gone += [(s.rpartition(".")[2], build.plan.key(s)) for s in steps if s in build.plan.stages]
        for stage, key in gone:
            build.store.forget(stage, key)
        raise RegistryError(
            error.what,
            hint="The damaged results were taken out of the store: run the same command again to make them anew, or"
            " pull the release from another copy. Check the disk.",
        ) from error


def _still_there(registry: Registry, known: dict[str, Any]) -> Published | None:
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
