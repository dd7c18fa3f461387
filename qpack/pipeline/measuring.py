"""Measuring a model: its server, the parts of its evidence, their keys."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evals.measure import accuracy, continuations, cross_check, load_tools, needle, perplexity, suite
from evals.measure.eval_specs import PerformanceSpec, Share, TasksSpec
from evals.parts import interleaved, performance
from evals.parts.collect_evidence import CollectedEvidence, Done, Part, collect_evidence
from evals.parts.interleaved import Reference
from evals.server import canary
from evals.server.session import Limits, ServedModel, ServedSession, Workspace
from evals.server.vllm_server import Command
from evals.workers.load_tool_job import Tool
from qpack.core.records import Accuracy
from qpack.core.speed import ToolLoad
from qpack.core.store import key_of
from qpack.pipeline import planned_serving
from qpack.pipeline.planned_serving import promise
from qpack.pipeline.stages.hold_out import HELD_OUT
from qpack.pipeline.state import Build
from qpack.recipe import eval_requests
from qpack.runtime import hardware
from quantize.emulate import twin
from registry.serving import serving_manifest

Make = Callable[[ServedSession, Done], Any]
Stop = Callable[[Accuracy], bool]


@dataclass(frozen=True)
class Model:
    """A model: the name that it is served under, its digest, its files. `twin` is the folder of what is served in its
    place.
    """

    name: str
    digest: str
    checkpoint: Path
    twin: Path | None = None


@dataclass(frozen=True)
class Measured:
    """What a stage measures: its model, the other server of each part that loads two, and when to stop asking."""

    stage: str
    model: ServedModel
    references: Mapping[str, Reference] = field(default_factory=dict)
    stop: Stop | None = None
    quantized: bool = False


def served(build: Build, model: Model, without: tuple[str, ...] | None, *, quantized: bool) -> ServedModel:
    """A model and how its server is started: as it is published. A server beside another one (`without` isn't None)
    leaves those flags out, and takes any port.
    """
    r, vllm = build.plan.recipe, build.plan.environments["vllm"]
    manifest = planned_serving.measured(
        planned_serving.named(build.plan.served(quantized=quantized), model.name, model.digest)
    )
    if without is not None:
        manifest = serving_manifest.beside(manifest, without)

    weights = model.twin / "checkpoint" if model.twin else model.checkpoint

    def arguments(host: str, port: int) -> list[str]:
        return serving_manifest.vllm_arguments(manifest, weights, host=host, port=port)

    own = twin.variables(model.twin) if model.twin else {}
    command = Command(vllm.python, arguments, {**vllm.variables, **manifest.environment, **own})
    port = r.serve.port if without is None else None
    return ServedModel(model.name, model.checkpoint, command, port, r.serve.max_model_len)


def collect(build: Build, measured: Measured) -> CollectedEvidence:
    """The evidence, from the store or from the server. Raises EvaluateError."""
    plan, stage = build.plan, measured.stage
    # Environments are created before the server is up: creating one takes the disk and the cores that are measured.
    missing = build.missing(stage)
    tools = {
        name: build.environment(name) if missing else plan.environments[name]
        for name in ("vllm", "lm-eval", "canary", *plan.recipe.measure.also)
    }
    if any(suite.is_hub(task.name) for task in eval_requests.tasks(plan.recipe)):
        tools["lm-eval"] = tools["lm-eval"].online()
    log = build.store.log(stage, plan.key(f"{stage}.performance"))
    workspace = Workspace(
        tools=tools,
        out=log.parent,
        log=log,
        progress=build.console.progress,
        report=build.console.report,
        limits=Limits(start=plan.recipe.limits.server_start_minutes * 60, tool=build.limit),
        free_accelerator=hardware.free_accelerator_bytes,
    )
    parts = [
        Part(part, plan.key(step.name), step.inputs, build.uses(step.inputs), make, build.usable)
        for part, make in _makers(build, measured).items()
        for step in (plan.steps[f"{stage}.{part}"],)
    ]
    windows = build.require(HELD_OUT).folder / "tokens.jsonl"
    return collect_evidence(measured.model, parts, workspace, windows, build.store)


def _makers(build: Build, measured: Measured) -> dict[str, Make]:
    """What makes each part that the plan has, in the order in which they are asked."""
    specs = eval_requests.specs(build.plan.recipe, build.require(HELD_OUT).result.domains)
    promised, stop = promise(build.plan.served(quantized=measured.quantized), build.plan.source), measured.stop

    def load_both(session: ServedSession, done: Done, part: str) -> Any:
        own = done["performance"].result.memory
        return interleaved.measure(session, getattr(specs, part), measured.references[part], own)

    makers: dict[str, Make] = {
        "performance": lambda session, _: performance.measure(session, specs.performance),
        **{part: functools.partial(load_both, part=part) for part in measured.references},
        "proof": lambda session, _: canary.prove(session.workspace, session.endpoint, promised),
        "language": lambda session, _: perplexity.measure(session, specs.language),
    }
    if (continuation := specs.continuations) is not None:
        makers["continuations"] = lambda session, _: continuations.measure(session, continuation)
    if (facts := specs.needle) is not None:
        makers["needle"] = lambda session, _: needle.measure(session, facts)
    if (windows := specs.cross_check) is not None:
        makers["cross_check"] = lambda session, _: cross_check.measure(session, windows)
    for tool in build.plan.recipe.measure.also:
        makers[load_tools.part_of(tool)] = functools.partial(_load_by, tool=tool, spec=specs.performance)
    makers["accuracy"] = lambda session, _: (
        accuracy.measure(session, specs.tasks)
        if stop is None
        else _interim_tasks(build, measured.stage, session, specs.tasks, stop)
    )
    return {part: make for part, make in makers.items() if f"{measured.stage}.{part}" in build.plan.steps}


def _load_by(session: ServedSession, _: Done, tool: Tool, spec: PerformanceSpec) -> ToolLoad:
    return load_tools.measure(session, tool, spec)


def _interim_tasks(build: Build, stage: str, session: ServedSession, spec: TasksSpec, stop: Stop) -> Accuracy:
    from evals.parts import interim_tasks

    inputs = build.plan.steps[f"{stage}.accuracy"].inputs

    def ask(share: Share) -> Accuracy:
        # The key of a share doesn't hold the rule for stopping, so another bound asks nothing twice.
        own = {name: value for name, value in inputs.items() if name != "stop"} | {"part": list(share)}

        def make(out: Path) -> Accuracy:
            return accuracy.measure(session.within(out), replace(spec, share=share))

        return build.keep(Accuracy, make, own, key_of(own)).result

    return interim_tasks.measure(ask, stop, build.console.report)
