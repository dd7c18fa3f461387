"""The records of a finished build: serving manifest, release manifest."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import qpack
from qpack.core.records import Native, Release, StageRecord
from qpack.pipeline import closure, evidence
from qpack.pipeline.stages.artifact import ARTIFACT
from qpack.pipeline.stages.calibrate import CALIBRATED
from qpack.pipeline.stages.fetch import FETCHED
from qpack.pipeline.stages.judge import JUDGED
from qpack.pipeline.stages.quantize import QUANTIZED
from qpack.recipe import effective
from registry.release.release_folder import has_chat_template
from registry.serving import metrics, objectives, parallel
from registry.serving.serving_manifest import DeviceMemory, Probes, ServedModel, ServingManifest, select

if TYPE_CHECKING:
    from qpack.core.jsonfile import JsonObject
    from qpack.pipeline.state import Build


def published_serving(build: Build) -> ServingManifest:
    """The artifact's serving manifest as it is published, with the measured figures."""
    made, measured = build.require(QUANTIZED).result, build.require(ARTIFACT).performance.result
    manifest, name = build.plan.served(quantized=True), build.plan.recipe.name
    digests = {record.path: record.sha256 for record in made.files}

    def digest(*names: str) -> str | None:
        return next((digests[name] for name in names if name in digests), None)

    templated = has_chat_template(build.require(QUANTIZED).folder / "checkpoint")
    templates = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
    held = measured.memory
    emulated = build.plan.emulated is not None
    return manifest.model_copy(
        update={
            "model": ServedModel(
                name=name,
                digest=made.digest,
                served_model_name=name,
                tokenizer_digest=digest("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json"),
                chat_template_digest=digest(*templates) if templated else None,
            ),
            "memory": DeviceMemory(
                basis="estimated" if emulated else "measured",
                weights_bytes=held.weights_bytes if emulated else held.weights_loaded_bytes or held.weights_bytes,
                kv_cache_bytes=held.kv_cache_bytes,
                resident_bytes=held.peak_resident_bytes if manifest.hardware == "cpu" and not emulated else None,
            ),
            "ran_with": measured.ran_with,
            "profiles": {
                each: profile.model_copy(
                    update={"memory": _estimated(manifest, each, held.weights_bytes, build.plan.source.config)}
                )
                for each, profile in manifest.profiles.items()
            },
            "probes": Probes(
                startup_budget_seconds=round(build.plan.recipe.limits.server_start_minutes * 60),
                measured_start_seconds=None if emulated else held.start_seconds,
            ),
            "objectives": ()
            if emulated
            else objectives.from_latency(measured.latency, server=measured.server, hardware=build.plan.hardware.name),
            "metrics": metrics.contract(manifest),
        }
    )


def _estimated(manifest: ServingManifest, name: str, weights_bytes: int, config: JsonObject) -> DeviceMemory | None:
    """What a profile needs on each of its devices: its share of the weights' files, and the caches' budget."""
    served = select(manifest, name)
    if served.kv_cache_memory_bytes is None:
        return None
    return DeviceMemory(
        basis="estimated",
        weights_bytes=math.ceil(weights_bytes * parallel.weights_share(served, config)),
        kv_cache_bytes=served.kv_cache_memory_bytes * parallel.cache_share(served),
    )


def stage_records(build: Build) -> tuple[StageRecord, ...]:
    """What each stage cost when it was run, by which code and in which environments, and whether this build ran it."""
    return tuple(
        StageRecord(
            stage=name,
            key=entry.key,
            seconds=entry.seconds,
            reused=entry.reused,
            code=closure.digest_of(entry.inputs["code"]) if "code" in entry.inputs else None,
            qpack_version=entry.made.get("qpack"),
            environments=entry.inputs.get("environments", {}),
        )
        for name, entry in build.steps.items()
    )


def _native(build: Build) -> Native | None:
    """The second baseline and the artifact's comparison with it; None where it wasn't measured."""
    compared = build.require(JUDGED).result.native
    if compared is None:
        return None
    form = build.plan.source.unpack or ""
    return Native(form=form, evidence=evidence.native_evidence(build), comparison=compared)


def release(build: Build, *, forced: bool = False) -> Release:
    """The release manifest. It can be made for a build whose gates failed too: then it is for the report alone."""
    recipe, judged = build.plan.recipe, build.require(JUDGED).result
    return Release(
        name=recipe.name,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        qpack_version=qpack.__version__,
        recipe=recipe.model_dump(mode="json"),
        recipe_text=effective.text(build.plan.loaded),
        source=build.require(FETCHED).result,
        calibration=calibrated.result if (calibrated := build.get(CALIBRATED)) else None,
        quantized=build.require(QUANTIZED).result,
        environments=tuple(environment.record() for environment in build.plan.environments.values()),
        baseline=evidence.baseline_evidence(build),
        artifact=evidence.artifact_evidence(build),
        comparison=judged.comparison,
        verdict=judged.verdict,
        forced=forced,
        stages=stage_records(build),
        contamination=judged.contamination,
        interleaved=evidence.interleaved(build),
        drafting=drafted.result if (drafted := build.require(ARTIFACT).drafting) else None,
        native=_native(build),
    )
