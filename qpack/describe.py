"""A build's results as the records that leave it: evidence, serving manifest, release manifest."""

from __future__ import annotations

import time

import qpack
from evals.latency import Load
from evals.observe import Observed
from qpack import held_out
from qpack.findings import Contamination, Continuations
from qpack.results import Evidence, Release, StageRecord
from qpack.sections import Measure
from qpack.speed import Interleaved, Objective
from qpack.work import Build, need
from registry import metrics, objectives
from registry.release import has_chat_template
from registry.serving_manifest import DeviceMemory, Probes, ServedModel, ServingManifest, select


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
        proof=observed.proof.result if observed.proof else None,
        needle=observed.needle.result if observed.needle else None,
        variables=performance.variables,
    )


def baseline_evidence(build: Build) -> Evidence:
    """The source model's, its tasks as far as the artifact was asked them."""
    whole = evidence(build, need(build.baseline), need(build.fetched).result.digest)
    asked = build.artifact.accuracy.result if build.artifact else None
    if asked is None or asked.look is None:
        return whole
    from evals.looks import seen

    return whole.model_copy(update={"accuracy": seen(whole.accuracy, asked)})


def artifact_evidence(build: Build) -> Evidence:
    """The artifact's."""
    return evidence(build, need(build.artifact), need(build.quantized).result.digest)


def in_turn(build: Build) -> Interleaved | None:
    """What both servers did when they were loaded in turn; None when the recipe doesn't ask for it."""
    entry = need(build.artifact).interleaved
    return entry.result if entry else None


def continued(build: Build) -> tuple[Continuations, Continuations] | None:
    """The greedy continuations of baseline and artifact; None when the recipe doesn't ask for them."""
    before, after = need(build.baseline).continuations, need(build.artifact).continuations
    return (before.result, after.result) if before and after else None


def overlaps(build: Build) -> Contamination | None:
    """Which calibration rows stand in the tasks or the held-out text; None when there was no calibration."""
    from evals import contamination

    r, plan = build.plan.recipe, build.plan
    if build.calibrated is None or r.calibration is None or plan.calibration is None or not plan.held_out:
        return None
    rows = contamination.texts_of(plan.calibration, r.calibration.field, build.calibrated.result.row_digests)
    tasks, unchecked = contamination.task_texts(need(build.artifact).accuracy.result)
    sets = dict(tasks)
    aside = need(build.held_out)
    for text, file in zip(r.evaluate.perplexity.each(), plan.held_out, strict=True):
        path, field = held_out.rows_of(text, file, aside.folder)
        known = contamination.texts_of(path, field, aside.result.row_digests)
        name = f"held-out text, {text.name}" if len(plan.held_out) > 1 else "held-out text"
        sets[name] = {f"text {digest[:12]}": found for digest, found in known.items()}
    return contamination.find(rows, sets, unchecked)


def serving(build: Build, name: str, digest: str, who: str = "artifact") -> ServingManifest:
    """The plan's serving manifest for a model that exists now: `baseline` or `artifact`."""
    return build.plan.served(who).model_copy(
        update={"model": ServedModel(name=name, digest=digest, served_model_name=name)}
    )


def published_serving(build: Build) -> ServingManifest:
    """The artifact's serving manifest as it is published: with what was measured through it."""
    made, measured = need(build.quantized).result, need(build.artifact).performance.result
    manifest = serving(build, build.plan.recipe.name, made.digest)
    digests = {record.path: record.sha256 for record in made.files}

    def digest(*names: str) -> str | None:
        return next((digests[name] for name in names if name in digests), None)

    templated = has_chat_template(need(build.quantized).folder / "checkpoint")
    templates = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
    held = measured.memory
    return manifest.model_copy(
        update={
            "model": manifest.model.model_copy(
                update={
                    "tokenizer_digest": digest("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json"),
                    "chat_template_digest": digest(*templates) if templated else None,
                }
            ),
            "memory": DeviceMemory(
                basis="measured",
                weights_bytes=held.weights_loaded_bytes or held.weights_bytes,
                kv_cache_bytes=held.kv_cache_bytes,
                resident_bytes=held.peak_resident_bytes if manifest.hardware == "cpu" else None,
            ),
            "ran_with": measured.ran_with,
            "profiles": {
                name: profile.model_copy(update={"memory": _estimated(manifest, name, held.weights_bytes)})
                for name, profile in manifest.profiles.items()
            },
            "probes": Probes(
                startup_budget_seconds=round(build.plan.recipe.limits.server_start_minutes * 60),
                measured_start_seconds=held.start_seconds,
            ),
            "objectives": objectives.from_latency(
                measured.latency, server=measured.server, hardware=build.plan.hardware.name
            ),
            "metrics": metrics.contract(manifest),
        }
    )


def _estimated(manifest: ServingManifest, name: str, weights_bytes: int) -> DeviceMemory | None:
    """What a profile needs on each of its devices: the weights' files divided, and the cache's budget."""
    served = select(manifest, name)
    if served.kv_cache_memory_bytes is None:
        return None
    shares = max(served.devices, 1)
    return DeviceMemory(
        basis="estimated", weights_bytes=-(-weights_bytes // shares), kv_cache_bytes=served.kv_cache_memory_bytes
    )


def stage_records(build: Build) -> tuple[StageRecord, ...]:
    """What each stage cost when it was run, and whether this build ran it."""
    stages = ("fetch", "hold_out", "calibrate", "quantize", "baseline", "artifact", "judge")
    return tuple(
        StageRecord(stage=name, key=entry.key, seconds=entry.seconds, reused=entry.reused)
        for stage in stages
        for name, entry in build.entries(stage).items()
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
        contamination=judged.contamination,
        interleaved=in_turn(build),
        drafting=drafted.result if (drafted := need(build.artifact).drafting) else None,
    )


def load(ask: Measure) -> Load:
    """The recipe's load, as the benchmark takes it."""
    settings = ask.model_dump(exclude={"objective", "rounds"})
    return Load(**settings, objective=Objective(**ask.objective.model_dump()) if ask.objective else None)
