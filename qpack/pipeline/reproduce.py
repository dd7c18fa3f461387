"""Rebuild a release's artifact from its own records, and compare the two.

The rebuild has a home of its own, `HOME/reproduce/DIGEST`, so that no result of the first build is reused: fetch,
hold_out, calibrate and quantize run again, and a server is started if tensors differ. Environments are shared, since
they are made from locks. A killed rebuild resumes; a finished one leaves nothing.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from evals.comparison.equivalence import Equivalence, Margins, equivalence
from qpack.core.errors import RegistryError
from qpack.core.frozen import Frozen
from qpack.core.problems import Code, Location, Problem
from qpack.core.records import FileRecord, Release
from qpack.core.store import Store, locked
from qpack.pipeline import evidence, plan
from qpack.pipeline.context import Context
from qpack.pipeline.find import read_release
from qpack.pipeline.planned import Plan
from qpack.pipeline.run import run
from qpack.pipeline.stages import artifact, calibrate, fetch, hold_out, quantize
from qpack.pipeline.stages.calibrate import CALIBRATED
from qpack.pipeline.stages.fetch import FETCHED
from qpack.pipeline.stages.quantize import QUANTIZED
from qpack.pipeline.state import Build
from qpack.recipe import recipe_file
from qpack.recipe.models import Recipe
from qpack.recipe.recipe_file import Loaded
from quantize.checkpoint import tensors
from quantize.checkpoint.tensors import Comparison
from registry.local.registry import LocalRegistry
from registry.serving import trust

Outcome = Literal["bit-identical", "tensor-identical", "statistically the same", "undecided", "different"]


class Input(Frozen):
    """Something that went into the artifact, and whether the rebuild had the same."""

    what: str
    same: bool
    then: str
    now: str


class Reproduction(Frozen):
    """How a rebuild came out. `files` are those whose bytes differ; `tensors` is None when no weights file does.

    `equivalence` is there when tensors differ and the rebuilt artifact was measured.
    """

    reference: str
    digest: str
    artifact_then: str
    artifact_now: str
    outcome: Outcome
    inputs: tuple[Input, ...]
    files: tuple[str, ...]
    tensors: Comparison | None
    equivalence: Equivalence | None
    seconds: float


@dataclass(frozen=True)
class Rebuild:
    """What to reproduce: relative paths in the release's recipe start at `base`. If tensors differ, the rebuilt
    artifact is measured, and compared with the release's evidence within `margins`; None compares tensors only.
    `trusted` allows code that the recipe names.
    """

    ref: str
    base: Path
    margins: Margins | None
    trusted: bool


def reproduce(asked: Rebuild, context: Context) -> Reproduction:
    """Rebuild the artifact of a release and compare.

    Raises RecipeError when the recipe can't work here, RegistryError when the source model has changed or the recipe
    would run code that isn't trusted, and what the stages raise.
    """
    local, home, console = LocalRegistry(context.registry), context.store.home, context.console
    resolved, release, _ = read_release(local.root, asked.ref)
    named = f"{resolved.name}:{resolved.version}"
    exact = f"{named}@{resolved.digest}"
    room = home / "reproduce" / resolved.digest.removeprefix("sha256:")[:32]
    waiting = "waiting for another qpack that reproduces the same release"
    with locked(home / "reproduce" / "locks" / room.name, lambda: console.report(waiting)):
        _share_environments(room, home)
        loaded = _recipe_of(release, room, asked.base)
        trust.check(named, _interpreters(loaded.recipe), asked.trusted)
        planned = plan.make(loaded, Store(room), thorough=True)
        trust.check(named, trust.beyond_tuning(planned.serving, ()), asked.trusted)
        built = run(Build(planned, replace(context, store=Store(room))), (fetch.STAGE,))
        source = built.require(FETCHED).result
        if source.digest != release.source.digest:
            raise RegistryError(
                _SOURCE_CHANGED,
                f"{named} can't be rebuilt: its source model has changed",
                hint=f"It was {release.source.resolved} with the digest {release.source.digest}, and is"
                f" {source.resolved} with {source.digest}.",
            )
        built = run(built, (hold_out.STAGE, calibrate.STAGE, quantize.STAGE))
        made = built.require(QUANTIZED)
        files = _differing(release.quantized.files, made.result.files)
        compared = _compare(local, exact, release, made.folder / "checkpoint", made.result.files, files)
        equal = None
        if asked.margins is not None and compared is not None and compared.differences:
            built = artifact.run(built)
            equal = equivalence(release.artifact, evidence.artifact_evidence(built), asked.margins)
        result = Reproduction(
            reference=named,
            digest=resolved.digest,
            artifact_then=release.quantized.digest,
            artifact_now=made.result.digest,
            outcome=_outcome(files, compared, equal),
            inputs=_inputs(release, planned, built),
            files=files,
            tensors=compared,
            equivalence=equal,
            seconds=made.seconds,
        )
        shutil.rmtree(room)
    return result


def _outcome(files: tuple[str, ...], compared: Comparison | None, equal: Equivalence | None) -> Outcome:
    if not files:
        return "bit-identical"
    if compared is None or not compared.differences:
        return "tensor-identical"
    if equal is None:
        return "different"
    return "statistically the same" if equal.answer == "same" else equal.answer


_INTERPRETER = Code("foreign-interpreter", "A release's recipe starts an interpreter by its path on this machine.")
_SOURCE_CHANGED = Code("source-changed", "The source of a release has changed.")


def _interpreters(r: Recipe) -> tuple[Problem, ...]:
    """Programs that the recipe names: it came with the release, from whoever made that."""
    what = "it starts a program on this machine."
    at = (Location("recipe.yaml", key=("environments", name)) for name in r.environments)
    return tuple(Problem(_INTERPRETER, what, where) for where in at)


def _share_environments(room: Path, home: Path) -> None:
    (home / "envs").mkdir(parents=True, exist_ok=True)
    room.mkdir(parents=True, exist_ok=True)
    if not (room / "envs").exists():
        (room / "envs").symlink_to(home.absolute() / "envs")


def _recipe_of(release: Release, room: Path, base: Path) -> Loaded:
    """The recipe as it was resolved, `--set` and all, with the source at the revision that was fetched."""
    recipe = json.loads(json.dumps(release.recipe))
    if release.source.resolved.startswith("hf://"):
        # A release is anybody's; a recipe without a model is for `recipe.load` to refuse.
        model = recipe.get("model")
        recipe["model"] = {**(model if isinstance(model, dict) else {}), "source": release.source.resolved}
    path = room / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1))  # JSON is YAML
    loaded = recipe_file.load(path)
    return replace(loaded, file=replace(loaded.file, path=base.absolute() / "recipe.yaml"))


def _inputs(release: Release, planned: Plan, built: Build) -> tuple[Input, ...]:
    then = {f"environment {made.name}": f"{made.variant} {made.lock_sha256[:12]}" for made in release.environments}
    now = {f"environment {e.name}": f"{e.variant} {e.digest[:12]}" for e in planned.environments.values()}
    calibrated = built.get(CALIBRATED)
    if release.calibration is not None and calibrated is not None:
        then["calibration tokens"] = release.calibration.digest[:12]
        now["calibration tokens"] = calibrated.result.digest[:12]
    then["hardware"], now["hardware"] = release.artifact.hardware.name, planned.hardware.name
    # What serves and scores has no part in the artifact.
    left_out = ("environment vllm", "environment lm-eval", "environment canary", "environment model-signing")
    return tuple(
        Input(what=what, same=then[what] == now.get(what, "none"), then=then[what], now=now.get(what, "none"))
        for what in then
        if what not in left_out
    )


def _differing(then: tuple[FileRecord, ...], now: tuple[FileRecord, ...]) -> tuple[str, ...]:
    one, two = ({record.path: record.sha256 for record in side} for side in (then, now))
    return tuple(sorted(path for path in one.keys() | two.keys() if one.get(path) != two.get(path)))


def _compare(
    local: LocalRegistry,
    ref: str,
    release: Release,
    checkpoint: Path,
    made: tuple[FileRecord, ...],
    differing: tuple[str, ...],
) -> Comparison | None:
    if not any(path.endswith(".safetensors") for path in differing):
        return None
    then = [record.path for record in release.quantized.files if record.path.endswith(".safetensors")]
    now = [record.path for record in made if record.path.endswith(".safetensors")]
    return tensors.compare(
        {path: local.open(ref, f"model/{path}") for path in then}, {path: checkpoint / path for path in now}
    )
