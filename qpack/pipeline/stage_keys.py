"""What every stage's key is made of, by name, so that a stage that is to do can say which input differs.

`after` are the keys of the stages before it, `code` the closure of the modules that make it (`qpack.pipeline.closure`),
`environments` the digests of the engines' environments; the rest is what the recipe asks, as the data that is handed to
those modules, and where it runs.

Hardware: speed and memory belong to the machine (its model, cores, accelerators). Figures of text and tasks, and the
artifact, belong to the kernels: the target, a GPU's model, and on a CPU its instruction sets and not its model, since
kernels are chosen by those. Texts become the same tokens everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from evals.measure import suite
from qpack.core.frozen import Frozen
from qpack.core.records import Hardware
from qpack.core.store import key_of
from qpack.pipeline import closure, planned_serving
from qpack.pipeline.held_out import asked as held_out_ask
from qpack.recipe import eval_requests
from qpack.recipe.eval_requests import interim_analysis, stop_rule
from qpack.recipe.models import Recipe
from qpack.runtime import hardware
from qpack.runtime.environments import Environment
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Engine, Request
from registry.serving import serving_manifest
from registry.serving.serving_manifest import DRAFT, ServingManifest

_MEASURED = "evals.parts.collect_evidence"
ENTRIES: dict[str, tuple[str, ...]] = {
    "fetch": ("qpack.pipeline.stages.fetch",),
    "convert": ("qpack.pipeline.stages.convert",),
    "hold_out": ("qpack.pipeline.stages.hold_out",),
    "calibrate": ("qpack.pipeline.stages.calibrate",),
    "quantize": ("qpack.pipeline.stages.quantize",),
    "performance": (_MEASURED, "evals.parts.performance"),
    "interleaved": (_MEASURED, "evals.parts.interleaved"),
    "drafting": (_MEASURED, "evals.parts.interleaved"),
    "proof": (_MEASURED, "evals.server.canary"),
    "language": (_MEASURED, "evals.measure.perplexity"),
    "continuations": (_MEASURED, "evals.measure.continuations"),
    "needle": (_MEASURED, "evals.measure.needle"),
    "accuracy": (_MEASURED, "evals.measure.accuracy"),
    "stop": ("evals.parts.interim_tasks",),
    "judge": ("qpack.pipeline.stages.judge",),
    "package": ("qpack.pipeline.stages.package",),
}
"""The modules that make each stage's result; `quantize` has the engine's adapter too, `stop` the interim analysis."""


@dataclass(frozen=True)
class Stage:
    """One step of the work store: its key (None while the model's content is unknown) and what went into the key."""

    name: str
    key: str | None
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class Known:
    """What keys are made from: all that a plan knows. `variables` are those that a measured server gets from here."""

    recipe: Recipe
    request: Request
    source: Source
    engine: Engine
    machine: Hardware
    target: str
    environments: Mapping[str, Environment]
    serving: ServingManifest
    held_out: Sequence[str | None]
    calibration: str | None
    variables: Mapping[str, str]
    digest: Callable[[Path], str | None]
    code: closure.Reader


def code_of(known: Known, stage: str) -> dict[str, str]:
    """The closure of a stage, by its name in ENTRIES."""
    return known.code.closure((*ENTRIES[stage], *((known.engine.__name__,) if stage == "quantize" else ())))  # type: ignore[attr-defined]


def stages(known: Known) -> dict[str, Stage]:
    """Every keyed step of a build, in order; evidence by part, as `baseline.accuracy`."""
    made: dict[str, Stage] = {}
    r = known.recipe

    def add(name: str, after: tuple[str, ...], /, **inputs: Any) -> None:
        stage = name.rpartition(".")[2]
        keys = {before: made[before].key for before in after}
        code = "convert" if name == "fetch" and gguf else stage
        whole = {"stage": stage, "after": keys, "code": code_of(known, code), **inputs}
        complete = all(keys.values()) and all(value is not None for value in inputs.values())
        made[name] = Stage(name, key_of(whole) if complete else None, whole)

    gguf = known.source.kind == "gguf"
    reader = _worker(known, "transformers")
    source = {"source": known.source.resolved, "content": known.source.content}
    add("fetch", (), **source, **(reader if gguf else {}))
    named = bool(r.evaluate.perplexity.texts)
    texts = None if None in known.held_out else list(known.held_out) if named else known.held_out[0]
    own_code = {"own_code": r.model.trust_remote_code}
    add("hold_out", ("fetch",), **reader, **own_code, texts=texts, ask=held_out_ask(r.evaluate.perplexity))
    before: tuple[str, ...] = ("fetch",)
    if r.calibration is not None:
        ask = r.calibration.model_dump(exclude={"source"})
        add("calibrate", ("fetch", "hold_out"), **reader, **own_code, texts=known.calibration, ask=ask)
        before = ("fetch", "calibrate")
    add(
        "quantize",
        before,
        engine=known.engine.NAME,
        **_worker(known, known.engine.ENVIRONMENT.name),
        inherited=dict(known.variables),
        request=known.request.key(known.engine.FORMATS[0]),
        hardware={"serves": known.target, "runs": _kernels(known.machine, known.machine.target)},
    )
    for who in ("baseline", "artifact"):
        for part, after, inputs in _evidence(known, who):
            if "stop" in inputs:
                inputs["stop"] = {**inputs["stop"], "baseline": made["baseline.accuracy"].key}
            add(f"{who}.{part}", after, **inputs)
    evidence = tuple(name for name in made if name.partition(".")[0] in ("baseline", "artifact"))
    # What overlaps is looked for in the texts themselves.
    overlaps = {"calibration": known.calibration} if r.calibration else {}
    fields = r.calibration.field if r.calibration else None
    ask = {"gates": r.gates.model_dump(mode="json"), "seed": r.evaluate.seed, "field": fields or ""}
    before = (*evidence, "hold_out", *(("calibrate",) if r.calibration else ()))
    add("judge", before, texts=list(known.held_out), ask=ask, **overlaps)
    return made


def packaging(known: Known, judge: str | None, text: str) -> dict[str, Any]:
    """The inputs of the release's key, but for whether it was forced. `text` is the recipe as written."""
    licence = known.source.licence_file
    return {
        "stage": "package",
        "after": {"judge": judge},
        "code": code_of(known, "package"),
        "recipe": text,
        "ask": known.recipe.model_dump(mode="json"),
        "licence": known.digest(licence) if licence else "",
        "environments": _digests(known, *known.environments),
    }


def _evidence(known: Known, who: str) -> Iterable[tuple[str, tuple[str, ...], dict[str, Any]]]:
    """Each part's name, the stages before it, and its inputs."""
    r, specs, serving = known.recipe, eval_requests.specs(known.recipe), known.serving
    # The served name is in every request, and each recipe has its own; the answers don't depend on it.
    # An artifact that is the source, byte for byte, isn't measured again.
    model = "fetch" if who == "baseline" or known.request.method == "none" else "quantize"
    common = {"serving": _command(known, who), "inherited": dict(known.variables), **_worker(known, "vllm")}
    machine, kernels = _machine(known.machine), _kernels(known.machine, known.target)
    yield "performance", (model,), {**common, "ask": _plain(specs.performance), "hardware": machine}
    pair = {**common, "beside": _command(known, "baseline", ()), "hardware": machine}
    if who == "artifact" and r.measure.rounds:
        # Both models' servers are up for it, so it belongs to the pair; what is each one's own stays shared.
        yield "interleaved", ("fetch", "quantize"), {**pair, "ask": _plain(specs.interleaved)}
        if DRAFT in serving.arguments:
            pair["beside"] = _command(known, "artifact", (DRAFT,))
            yield "drafting", ("quantize", "hold_out"), {**pair, "ask": _plain(specs.drafting)}
    if who == "artifact":
        client = _worker(known, "vllm", "canary")
        yield (
            "proof",
            (model,),
            {**common, **client, "ask": _plain(planned_serving.promise(serving)), "hardware": kernels},
        )
    text = (model, "hold_out")
    yield "language", text, {**common, "ask": {"top_k": specs.language.top_k}, "hardware": kernels}
    if specs.continuations:
        yield "continuations", text, {**common, "ask": _plain(specs.continuations), "hardware": kernels}
    if specs.needle is not None:
        yield "needle", text, {**common, "ask": _plain(specs.needle), "hardware": kernels}
    scorer = {**_worker(known, "vllm", "lm-eval"), "data": _task_data(known)}
    stop = {}
    if who == "artifact" and interim_analysis(r):
        stop = {"stop": {"rule": list(stop_rule(r)), "code": code_of(known, "stop")}}
    yield "accuracy", (model,), {**common, **scorer, "ask": _plain(specs.tasks), "hardware": kernels, **stop}


def _command(known: Known, who: str, without: tuple[str, ...] | None = None) -> dict[str, Any]:
    """How a model is served: the server's arguments, with nothing for its folder and name, and its variables."""
    share = planned_serving.share(known.serving, known.machine, known.source, known.request, who)
    served = planned_serving.served(known.serving, known.recipe, who, share)
    if without is not None:
        served = serving_manifest.beside(served, without)
    served = served.model_copy(update={"model": served.model.model_copy(update={"name": "", "served_model_name": ""})})
    arguments = serving_manifest.vllm_arguments(served, Path(), host="", port=0)
    return {"arguments": arguments, "variables": dict(sorted(served.environment.items())), "hardware": served.hardware}


def _task_data(known: Known) -> dict[str, str | None]:
    """Content of the task files that come with qpack, and of the data that they read. A hub task's data is fetched by
    lm-eval, at the revision that its own task file names.
    """
    found: dict[str, str | None] = {}
    for task in eval_requests.tasks(known.recipe):
        if (own := suite.TASKS.get(task.name)) is not None:
            found[f"{task.name}.yaml"] = known.digest(suite.TASKS_DIR / f"{task.name}.yaml")
            data = suite.data_file(own)
            found[own.file] = known.digest(data) if data else "not there"
    return found


def _plain(value: Any) -> Any:
    """A question as data for JSON."""
    if isinstance(value, Frozen):
        return value.model_dump(mode="json")
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


def _worker(known: Known, *names: str) -> dict[str, dict[str, Any]]:
    """What is installed where workers run, and the variables that those are given."""
    return {
        "environments": _digests(known, *names),
        "variables": {name: dict(known.environments[name].variables) for name in names},
    }


def _digests(known: Known, *names: str) -> dict[str, str]:
    return {name: known.environments[name].digest for name in names}


def _machine(machine: Hardware) -> dict[str, Any]:
    # Memory differs a little from boot to boot.
    return {**machine.model_dump(mode="json", exclude={"memory_bytes"}), "instructions": hardware.instructions()}


def _kernels(machine: Hardware, target: str) -> dict[str, Any]:
    if target == "cpu":
        return {"target": target, "instructions": hardware.instructions()}
    return {"target": target, "name": machine.name}
