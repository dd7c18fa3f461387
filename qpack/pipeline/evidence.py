"""A build's measured parts as inputs of the verdict: evidence, interleaved load, continuations, overlaps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evals.comparison.compare import MeasuredModel
from evals.gates.interim_analysis import seen
from evals.measure import contamination
from qpack.core.findings import Contamination
from qpack.core.records import Evidence
from qpack.core.speed import Interleaved
from qpack.pipeline import emulation, held_out
from qpack.pipeline.stages.artifact import ARTIFACT
from qpack.pipeline.stages.baseline import BASELINE
from qpack.pipeline.stages.calibrate import CALIBRATED
from qpack.pipeline.stages.fetch import FETCHED
from qpack.pipeline.stages.hold_out import HELD_OUT
from qpack.pipeline.stages.native import NATIVE, PACKED
from qpack.pipeline.stages.quantize import QUANTIZED

if TYPE_CHECKING:
    from evals.parts.collect_evidence import CollectedEvidence
    from qpack.pipeline.state import Build


def evidence(build: Build, observed: CollectedEvidence, model_digest: str) -> Evidence:
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
        cross_check=observed.cross_check.result if observed.cross_check else None,
        loads=tuple(load.result for load in (observed.guidellm, observed.inference_perf) if load),
        variables=performance.variables,
    )


def baseline_evidence(build: Build) -> Evidence:
    """The source model's, its tasks as far as the artifact was asked them."""
    whole = evidence(build, build.require(BASELINE), build.require(FETCHED).result.digest)
    if emulation.of_baseline(build.plan):
        whole = whole.model_copy(update={"emulated": emulation.record(build)})
    asked = observed.accuracy.result if (observed := build.get(ARTIFACT)) else None
    if asked is None or asked.look is None:
        return whole
    return whole.model_copy(update={"accuracy": seen(whole.accuracy, asked)})


def native_evidence(build: Build) -> Evidence:
    """The stored source's, its tasks as far as the artifact was asked them."""
    whole = evidence(build, build.require(NATIVE), build.require(PACKED).result.digest)
    asked = build.require(ARTIFACT).accuracy.result
    return whole if asked.look is None else whole.model_copy(update={"accuracy": seen(whole.accuracy, asked)})


def artifact_evidence(build: Build) -> Evidence:
    """The artifact's."""
    found = evidence(build, build.require(ARTIFACT), build.require(QUANTIZED).result.digest)
    return found.model_copy(update={"emulated": emulation.record(build)})


def measured(collected: CollectedEvidence, found: Evidence) -> MeasuredModel:
    """One side of the comparison."""
    continued = collected.continuations
    return MeasuredModel(found, collected.language.folder / "logprobs.npz", continued.result if continued else None)


def interleaved(build: Build) -> Interleaved | None:
    """The load on both servers in turn; None if the recipe doesn't ask for it."""
    entry = build.require(ARTIFACT).interleaved
    return entry.result if entry else None


def prompts(build: Build) -> dict[str, dict[str, str]]:
    """{task: {item: text}} of the tasks whose texts are at hand."""
    return contamination.task_texts(build.require(ARTIFACT).accuracy.result)[0]


def overlaps(build: Build) -> Contamination | None:
    """Calibration rows that are in the tasks or the held-out text too; None without calibration."""
    r, plan = build.plan.recipe, build.plan
    if (
        (calibrated := build.get(CALIBRATED)) is None
        or r.calibration is None
        or plan.calibration is None
        or not plan.held_out
    ):
        return None
    rows = contamination.texts_of(plan.calibration, r.calibration.field, calibrated.result.row_digests)
    tasks, unchecked = contamination.task_texts(build.require(ARTIFACT).accuracy.result)
    sets = dict(tasks)
    aside = build.require(HELD_OUT)
    for text, file in zip(r.evaluate.perplexity.each(), plan.held_out, strict=True):
        path, field = held_out.rows_of(text, file, aside.folder)
        known = contamination.texts_of(path, field, aside.result.row_digests)
        name = f"held-out text, {text.name}" if len(plan.held_out) > 1 else "held-out text"
        sets[name] = {f"text {digest[:12]}": found for digest, found in known.items()}
    return contamination.find(rows, sets, unchecked)
