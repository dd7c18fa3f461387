"""The artifact, made by the engine in its own environment."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qpack import __version__
from qpack.core.errors import QuantizeError
from qpack.core.problems import Code, Problem
from qpack.core.records import Quantized
from qpack.pipeline.slots import Slot
from qpack.pipeline.stage import Stage
from qpack.pipeline.stages.calibrate import CALIBRATED
from qpack.pipeline.stages.fetch import FETCHED, LESS_MEMORY
from qpack.pipeline.work import call
from qpack.runtime import worker
from qpack.runtime.worker import MemoryHints
from quantize.engines.protocol import Paths
from quantize.engines.workers.engine_answer import Answer
from quantize.schemes.schemes import UNCHANGED

if TYPE_CHECKING:
    from qpack.core.store import Entry
    from qpack.pipeline.planned import Plan
    from qpack.pipeline.stage_keys import Known, Step
    from qpack.pipeline.state import Build
    from qpack.runtime.memory_limits import Place

_DAMAGED_ARTIFACT = Code("damaged-artifact", "The doctor found errors in the artifact.")

NAME = "quantize"
QUANTIZED: Slot[Entry[Quantized]] = Slot(NAME)
CODE = {NAME: (f"{__name__}:make",)}
"""The engine's adapter comes on top."""

_ALTERNATIVES = 3


def steps(known: Known, before: Mapping[str, Step]) -> Iterator[Step]:
    """The artifact."""
    from qpack.pipeline import stage_keys

    engine = known.engine
    inputs = {
        "engine": engine.NAME,
        **stage_keys.worker(known, engine.ENVIRONMENT.name),
        "inherited": dict(known.variables),
        "request": known.request.key(engine.FORMATS[0]),
        "hardware": {"serves": known.target, "runs": stage_keys.kernels(known.machine, known.machine.target)},
    }
    after = (FETCHED.stage, *((CALIBRATED.stage,) if CALIBRATED.stage in before else ()))
    code = known.code.closure((*CODE[NAME], engine.__name__))  # type: ignore[attr-defined]
    yield stage_keys.step(NAME, before, after, code, inputs)


def title(plan: Plan) -> str:
    """Method, scheme and engine."""
    q = plan.recipe.quantize
    if q.method == "none":
        return "the source model unchanged"
    if q.method == "online":
        return f"the source model unchanged: vLLM quantizes it to {q.scheme} as it loads"
    groups = f" in groups of {q.group_size}" if q.group_size else ""
    budget = f" within {q.budget:g} bits per weight" if q.budget else ""
    return f"{q.method} {q.scheme}{groups}{budget} with {plan.engine.NAME}"


def run(build: Build) -> Build:
    """Quantize; warns of layers with large errors. Raises QuantizeError."""
    from evals.report import layer_errors
    from qpack.pipeline import requirements

    def made(out: Path) -> Quantized:
        return make(build, out, hints_of(build.plan)).model_copy(update=requirements.expected(build.plan))

    entry = build.once(NAME, Quantized, made)
    if (warning := layer_errors.warning(entry.result.sites)) is not None:
        build.console.report(f"warning: {warning}")
    examine(build, entry)
    return build.having(QUANTIZED, entry)


def examine(build: Build, entry: Entry[Quantized]) -> None:
    """Check the artifact against the source before a server reads it; a sound one is remembered by its digest. Raises
    QuantizeError for a damaged one, which stays in the store.
    """
    from quantize.doctor import checkup

    name = f"doctor-{entry.result.digest[-32:]}"
    if build.store.recall(name) == {"qpack": __version__}:
        return
    folder, source = entry.folder / "checkpoint", build.require(FETCHED).folder / "checkpoint"
    found = checkup.examine(folder, against=None if build.plan.request.method in UNCHANGED else source)
    for problem in found.findings:
        if problem.severity == "warning":
            build.console.report(str(problem))
    refuse_damaged(found.findings, folder, alternatives(build.plan))
    build.store.remember(name, {"qpack": __version__})


def refuse_damaged(findings: Sequence[Problem], folder: Path | None, others: Sequence[str]) -> None:
    """Raise QuantizeError if a finding is an error; `others` are other ways to make the artifact, `folder`
    where it stays.
    """
    errors = tuple(problem for problem in findings if problem.severity == "error")
    if errors:
        instead = f"Use another method or engine: {'; '.join(others)}. " if others else "Use another method or engine. "
        hint = f"{instead}`qpack doctor {folder}` checks it again." if folder else instead.strip()
        raise QuantizeError(
            _DAMAGED_ARTIFACT, "the artifact is damaged, and no server was started", hint=hint, problems=errors
        )


def alternatives(plan: Plan) -> list[str]:
    """Other methods and engines that make the recipe's scheme of this model."""
    from quantize.engines import catalog
    from quantize.schemes.schemes import SCHEMES

    request, found = plan.request, []
    for method in SCHEMES[request.scheme].methods:
        for name in catalog.ENGINES:
            if (name, method) == (plan.engine.NAME, request.method):
                continue
            engine, _ = catalog.choose(name, method, request.scheme, plan.target)
            if engine is not None and not engine.check(replace(request, method=method, format=None), plan.source):
                found.append(f"`method: {method}` with `engine: {name}`")
    return found[:_ALTERNATIVES]


def stored(build: Build) -> Build:
    """With the stored artifact."""
    return build.having(QUANTIZED, build.stored(NAME, Quantized))


def summary(build: Build) -> str:
    """How many layers, and the size."""
    made, source = build.require(QUANTIZED).result, build.require(FETCHED).result
    layers = f"{made.quantized_layers} of {made.linear_layers} linear layers"
    return f"{layers}, {source.weights_bytes / 2**20:,.0f} MiB to {made.weights_bytes / 2**20:,.0f} MiB"


def make(build: Build, out: Path, hints: MemoryHints | None = None) -> Quantized:
    """Write the artifact into `out/checkpoint`. Raises QuantizeError."""
    engine, request = build.plan.engine, build.plan.request
    calibrated = build.get(CALIBRATED)
    tokens = calibrated.folder / "tokens.jsonl" if calibrated else None
    scratch = build.store.scratch(NAME, build.plan.key(NAME))
    job = engine.job(request, Paths(build.require(FETCHED).folder / "checkpoint", tokens, scratch))
    answer = worker.run(engine.WORKER, job, Answer, call(build, engine.ENVIRONMENT.name, out, build.log(NAME), hints))
    shutil.rmtree(scratch, ignore_errors=True)
    return engine.read(request, out, answer)


def hints_of(plan: Plan) -> MemoryHints:
    """For an engine that runs out of memory: what to change, and whether it resumes."""
    return MemoryHints(lambda place: memory_hints(plan, place), resumption(plan))


def resumption(plan: Plan) -> str:
    """Where a quantization that was stopped starts the next time."""
    name = plan.engine.NAME
    if plan.engine.RESUMABLE:
        return f"{name} keeps finished layers; quantization resumes"
    return f"{name} keeps no finished layers; quantization restarts"


def memory_hints(plan: Plan, place: Place) -> tuple[Problem, ...]:
    """The recipe's keys that decide how much memory of `place` it takes, those that cost least quality first."""
    return (*_offload(plan, place), *_calibration(plan))


def _calibration(plan: Plan) -> list[Problem]:
    ask = plan.recipe.calibration
    if ask is None:
        return []
    # Where the value is a default, the place is that of `calibration`.
    samples = plan.loaded.problem(
        LESS_MEMORY,
        f"{ask.samples} rows: each row's activations are kept from layer to layer.",
        *("calibration", "samples"),
        hint=f"Fewer take less: {max(1, ask.samples // 2)}.",
        severity="note",
    )
    length = plan.loaded.problem(
        LESS_MEMORY,
        f"rows of up to {ask.max_length} tokens go through a layer whole.",
        *("calibration", "max_length"),
        hint=f"Shorter ones take less: {max(ask.min_length, ask.max_length // 2)}.",
        severity="note",
    )
    return [samples, length]


def _offload(plan: Plan, place: Place) -> list[Problem]:
    """Another engine that reads one layer at a time from disk; on a GPU every engine does, from the host's memory."""
    from quantize.engines import catalog

    engine, request = plan.engine, plan.request
    # Rounding alone holds one file of the checkpoint already.
    if engine.LAYERWISE or place == "gpu" or request.method == "rtn":
        return []
    what = f"{engine.NAME} holds all layers in memory."
    for name, other in catalog.ENGINES.items():
        able = other.LAYERWISE and catalog.choose(name, request.method, request.scheme, plan.target, request.format)[0]
        if able and not other.check(request, plan.source):
            hint = f"{name} holds one layer at a time, read from disk: `engine: {name}`."
            return [plan.loaded.problem(LESS_MEMORY, what, "quantize", "engine", hint=hint, severity="note")]
    return []


STAGE = Stage(NAME, title, run, summary=summary, steps=steps, stored=stored, code=CODE)
