"""The artifact's evidence, from one server that is started as the baseline's was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from qpack.pipeline.slots import Slot
from qpack.pipeline.stage import Stage
from qpack.pipeline.stages import baseline
from qpack.pipeline.stages.baseline import BASELINE
from qpack.pipeline.stages.fetch import FETCHED
from qpack.pipeline.stages.hold_out import HELD_OUT
from qpack.pipeline.stages.quantize import QUANTIZED

if TYPE_CHECKING:
    from evals.parts.collect_evidence import CollectedEvidence
    from evals.parts.interleaved import Reference
    from evals.server.session import ServedModel
    from qpack.pipeline.evidence_keys import Side
    from qpack.pipeline.planned import Plan
    from qpack.pipeline.stage_keys import Known, Step
    from qpack.pipeline.state import Build

NAME = "artifact"
ARTIFACT: Slot[CollectedEvidence] = Slot(NAME)


def steps(known: Known, before: Mapping[str, Step]) -> Iterator[Step]:
    """The parts of the evidence."""
    from qpack.pipeline import evidence_keys
    from qpack.recipe import eval_requests

    # An artifact that is the source, byte for byte, isn't measured again.
    model = FETCHED.stage if known.request.method == "none" else QUANTIZED.stage
    side = evidence_keys.Side(NAME, model, HELD_OUT.stage, quantized=True)
    yield evidence_keys.performance(known, side, before)
    yield from _own(known, side, before)
    stop = None
    if eval_requests.interim_analysis(known.recipe):
        other = f"{BASELINE.stage}.accuracy"
        stop = {
            "rule": list(eval_requests.stop_rule(known.recipe)),
            "code": known.code.closure(evidence_keys.CODE["stop"]),
            "after": {other: before[other].key},
        }
    yield from evidence_keys.shared(known, side, before, stop)


def _own(known: Known, side: Side, before: Mapping[str, Step]) -> Iterator[Step]:
    """What only an artifact has: load in turns with another server, and proof of what the manifest promises."""
    from qpack.pipeline import evidence_keys, planned_serving, stage_keys
    from qpack.recipe import eval_requests
    from registry.serving.serving_manifest import DRAFT

    specs = eval_requests.specs(known.recipe)
    common = evidence_keys.served(known, quantized=True)
    if known.recipe.measure.rounds and not known.emulation:
        # Both models' servers are up for it, so it belongs to the pair; each one's own evidence stays shared.
        pair = {**common, "hardware": stage_keys.machine(known.machine)}
        beside = evidence_keys.command(known, quantized=False, without=())
        inputs = {**pair, "beside": beside, "ask": stage_keys.plain(specs.interleaved)}
        yield side.part(known, before, "interleaved", inputs, (FETCHED.stage, QUANTIZED.stage))
        if DRAFT in known.serving.arguments:
            beside = evidence_keys.command(known, quantized=True, without=(DRAFT,))
            inputs = {**pair, "beside": beside, "ask": stage_keys.plain(specs.drafting)}
            yield side.part(known, before, "drafting", inputs, (QUANTIZED.stage, HELD_OUT.stage))
    inputs = {
        **common,
        **stage_keys.worker(known, "vllm", "canary"),
        "ask": stage_keys.plain(planned_serving.promise(known.serving, known.source)),
        "hardware": stage_keys.kernels(known.machine, known.target),
    }
    yield side.part(known, before, "proof", inputs)


def title(plan: Plan) -> str:
    """How it is measured."""
    if plan.recipe.quantize.method == "none":
        return "reuses the baseline's evidence; the canary"
    if plan.emulated:
        return "its 16-bit twin in vLLM; speed and memory don't count"
    return "the quantized model in vLLM, measured the same way"


def run(build: Build) -> Build:
    """Measure what the store doesn't have. Without a baseline (`qpack reproduce`) everything is asked of the artifact
    alone. Raises EvaluateError, and EnvironmentFailed if this CPU can't serve the artifact.
    """
    if not build.missing(NAME):
        return build.having(ARTIFACT, build.observed(NAME))
    from qpack.pipeline import measuring
    from qpack.recipe import eval_requests

    check_cpu(build)
    before = build.get(BASELINE)
    stop = eval_requests.stop_of(build.plan.recipe, before.accuracy.result) if before else None
    measured = measuring.Measured(NAME, served(build), _references(build), stop, quantized=True)
    return build.having(ARTIFACT, measuring.collect(build, measured))


def check_cpu(build: Build) -> None:
    """Raise EnvironmentFailed if this CPU can't serve the artifact, and evidence is still to be measured."""
    from qpack.pipeline import cpu_support, requirements

    if not build.plan.emulated and cpu_support.lacking(build.plan.request, build.plan.source) and build.missing(NAME):
        requirements.check_cpu(build.plan)


def _references(build: Build) -> dict[str, Reference]:
    """The other server of each part that loads two in turn."""
    from evals.parts.interleaved import Reference
    from registry.serving.serving_manifest import DRAFT

    if (before := build.get(BASELINE)) is None:
        return {}
    references = {}
    if f"{NAME}.interleaved" in build.plan.steps:
        references["interleaved"] = Reference(baseline.served(build, without=()), before.performance.result.memory)
    if f"{NAME}.drafting" in build.plan.steps:
        references["drafting"] = Reference(served(build, without=(DRAFT,)), None)
    return references


def stored(build: Build) -> Build:
    """With the stored evidence."""
    return build.having(ARTIFACT, build.observed(NAME))


def summary(build: Build) -> str:
    """Means of the tasks."""
    return baseline.means(build.require(ARTIFACT))


def served(build: Build, without: tuple[str, ...] | None = None) -> ServedModel:
    """The artifact and its server. `without` isn't None for a server beside it: flags to leave out."""
    from qpack.pipeline import emulation, measuring

    made = build.require(QUANTIZED)
    twin = emulation.folder(build) if build.plan.emulated and build.missing(NAME) else None
    model = measuring.Model(build.plan.recipe.name, made.result.digest, made.folder / "checkpoint", twin)
    return measuring.served(build, model, without, quantized=True)


STAGE = Stage(NAME, title, run, summary=summary, steps=steps, stored=stored)
