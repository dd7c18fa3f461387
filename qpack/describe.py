"""A build's results as the records that leave it: evidence, serving manifest, release manifest."""

from __future__ import annotations

import time

import qpack
from evals.latency import Load
from evals.observe import Observed
from qpack.recipe import Measure
from qpack.results import Evidence, Release, StageRecord
from qpack.speed import Objective
from qpack.work import Build, need
from registry.serving_manifest import ServedModel, ServingManifest


def evidence(build: Build, observed: Observed, model_digest: str) -> Evidence:
    """The parts of a model's evidence as one."""
    performance = observed.performance.result
    return Evidence(
        model_digest=model_digest,
        server=performance.server,
        hardware=build.plan.hardware,
        accuracy=observed.accuracy.result,
        language=observed.language.result,
        latency=performance.latency,
        memory=performance.memory,
        canary=performance.canary,
    )


def baseline_evidence(build: Build) -> Evidence:
    """The source model's."""
    return evidence(build, need(build.baseline), need(build.fetched).result.digest)


def artifact_evidence(build: Build) -> Evidence:
    """The artifact's."""
    return evidence(build, need(build.artifact), need(build.quantized).result.digest)


def serving(build: Build, name: str, digest: str) -> ServingManifest:
    """The plan's serving manifest for a model that exists now."""
    return build.plan.serving.model_copy(
        update={"model": ServedModel(name=name, digest=digest, served_model_name=name)}
    )


def stage_records(build: Build) -> tuple[StageRecord, ...]:
    """What each stage cost when it was run, and whether this build ran it."""
    return tuple(
        StageRecord(stage=name, key=entry.key, seconds=entry.seconds, reused=entry.reused)
        for name, entry in (
            (stage if len(entries) == 1 else f"{stage}.{part}", entry)
            for stage in ("fetch", "hold_out", "calibrate", "quantize", "baseline", "artifact", "judge")
            for entries in (build.entries(stage),)
            for part, entry in zip(("performance", "language", "accuracy"), entries, strict=False)
        )
    )


def release(build: Build) -> Release:
    """The release manifest. It can be made for a build whose gates failed too: then it is for the report alone."""
    recipe, judged = build.plan.recipe, need(build.judged).result
    return Release(
        name=recipe.name,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        qpack_version=qpack.__version__,
        recipe=recipe.model_dump(mode="json"),
        recipe_text=build.plan.loaded.file.text,
        source=need(build.fetched).result,
        calibration=build.calibrated.result if build.calibrated else None,
        quantized=need(build.quantized).result,
        environments=tuple(environment.record() for environment in build.plan.environments.values()),
        baseline=baseline_evidence(build),
        artifact=artifact_evidence(build),
        comparison=judged.comparison,
        verdict=judged.verdict,
        forced=judged.verdict.outcome != "pass",
        stages=stage_records(build),
    )


def load(ask: Measure) -> Load:
    """The recipe's load, as the benchmark takes it."""
    settings = ask.model_dump(exclude={"objective"})
    return Load(**settings, objective=Objective(**ask.objective.model_dump()) if ask.objective else None)
