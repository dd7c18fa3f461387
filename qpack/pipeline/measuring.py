"""Evidence of a build's two models: what is asked of each, through which server, kept under which key."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from evals.measure import accuracy, continuations, needle, perplexity, suite
from evals.measure.eval_specs import Share, TasksSpec
from evals.parts import interleaved, performance
from evals.parts.collect_evidence import CollectedEvidence, Done, Part, collect_evidence
from evals.parts.interleaved import Reference
from evals.server import canary
from evals.server.session import Limits, ServedModel, ServedSession, Workspace
from evals.server.vllm_server import Command
from qpack.core.records import Accuracy
from qpack.core.store import key_of
from qpack.pipeline import release_records, requirements
from qpack.pipeline.needed import need
from qpack.pipeline.planned_serving import promise
from qpack.pipeline.state import Build
from qpack.recipe import eval_requests
from qpack.runtime import hardware
from registry.serving import serving_manifest

Make = Callable[[ServedSession, Done], Any]
Stop = Callable[[Accuracy], bool]


def baseline(build: Build) -> CollectedEvidence:
    """The source model's."""
    return _collect(build, "baseline", _source(build), {}, None)


def artifact(build: Build) -> CollectedEvidence:
    """The artifact's. Without a baseline it alone is asked about, and everything (`qpack reproduce`)."""
    known, name = build.baseline, build.plan.recipe.name
    references: dict[str, Reference] = {}
    stop = None
    if known is not None:
        stop = eval_requests.stop_of(build.plan.recipe, known.accuracy.result)
        if "artifact.interleaved" in build.plan.stages:
            references["interleaved"] = Reference(_source(build, without=()), known.performance.result.memory)
        if "artifact.drafting" in build.plan.stages:
            references["drafting"] = Reference(_made(build, name, without=(serving_manifest.DRAFT,)), None)
    return _collect(build, "artifact", _made(build, name), references, stop)


def _source(build: Build, without: tuple[str, ...] | None = None) -> ServedModel:
    source = need(build.fetched)
    return _served(build, "baseline", "baseline", source.result.digest, source.folder / "checkpoint", without)


def _made(build: Build, name: str, without: tuple[str, ...] | None = None) -> ServedModel:
    made = need(build.quantized)
    return _served(build, "artifact", name, made.result.digest, made.folder / "checkpoint", without)


def _served(
    build: Build, who: str, name: str, digest: str, checkpoint: Path, without: tuple[str, ...] | None
) -> ServedModel:
    """A model and how its server is started: as it is published. A server beside another one (`without` isn't None)
    has what lets it start there, and leaves those flags out.
    """
    r, vllm = build.plan.recipe, build.plan.environments["vllm"]
    manifest = release_records.serving(build, name, digest, who)
    if without is not None:
        manifest = serving_manifest.beside(manifest, without)

    def arguments(host: str, port: int) -> list[str]:
        return serving_manifest.vllm_arguments(manifest, checkpoint, host=host, port=port)

    command = Command(vllm.python, arguments, {**vllm.variables, **manifest.environment})
    port = r.serve.port if without is None else None
    return ServedModel(name, checkpoint, command, port, r.serve.max_model_len)


def _collect(
    build: Build, who: str, served: ServedModel, references: dict[str, Reference], stop: Stop | None
) -> CollectedEvidence:
    plan = build.plan
    # The environments are made before the server is up: making one takes the disk and the cores that are measured.
    missing = build.missing(who)
    if missing and who == "artifact":
        requirements.check_cpu(plan)
    tools = {
        name: build.environment(name) if missing else plan.environments[name] for name in ("vllm", "lm-eval", "canary")
    }
    if any(suite.is_hub(task.name) for task in eval_requests.tasks(plan.recipe)):
        tools["lm-eval"] = tools["lm-eval"].online()
    log = build.store.log(who, plan.key(f"{who}.performance"))
    workspace = Workspace(
        tools=tools,
        out=log.parent,
        log=log,
        progress=build.console.progress,
        tell=build.console.tell,
        limits=Limits(start=plan.recipe.limits.server_start_minutes * 60, tool=build.limit),
        free_accelerator=hardware.free_accelerator_bytes,
    )
    makers = _makers(build, who, references, stop)
    parts = [
        Part(part, plan.key(step.name), step.inputs, build.uses(step.inputs), make)
        for part, make in makers.items()
        for step in (plan.stages[f"{who}.{part}"],)
    ]
    windows = need(build.held_out).folder / "tokens.jsonl"
    return collect_evidence(served, parts, workspace, windows, build.store)


def _makers(build: Build, who: str, references: dict[str, Reference], stop: Stop | None) -> dict[str, Make]:
    """What makes each part that the plan asks for, in the order in which they are asked."""
    specs = eval_requests.specs(build.plan.recipe, need(build.held_out).result.domains)

    def in_turn(session: ServedSession, done: Done, part: str) -> Any:
        own = done["performance"].result.memory
        return interleaved.measure(session, getattr(specs, part), references[part], own)

    makers: dict[str, Make] = {
        "performance": lambda session, _: performance.measure(session, specs.performance),
        **{part: functools.partial(in_turn, part=part) for part in references},
        "proof": lambda session, _: canary.prove(session.workspace, session.endpoint, promise(build.plan.served(who))),
        "language": lambda session, _: perplexity.measure(session, specs.language),
        "continuations": lambda session, _: continuations.measure(session, need(specs.continuations)),
        "needle": lambda session, _: needle.measure(session, need(specs.needle)),
        "accuracy": lambda session, _: (
            accuracy.measure(session, specs.tasks)
            if stop is None
            else _interim_tasks(build, session, specs.tasks, stop)
        ),
    }
    return {part: make for part, make in makers.items() if f"{who}.{part}" in build.plan.stages}


def _interim_tasks(build: Build, session: ServedSession, spec: TasksSpec, stop: Stop) -> Accuracy:
    from evals.parts import interim_tasks

    inputs = build.plan.stages["artifact.accuracy"].inputs

    def ask(share: Share) -> Accuracy:
        # The key of a share doesn't hold the rule for stopping, so another bound asks nothing twice.
        own = {name: value for name, value in inputs.items() if name != "stop"} | {"part": list(share)}
        return build.store.once(
            "accuracy",
            key_of(own),
            Accuracy,
            lambda out: accuracy.measure(session.within(out), replace(spec, share=share)),
            inputs=own,
            tell=build.console.tell,
            uses=build.uses(own),
        ).result

    return interim_tasks.measure(ask, stop, build.console.tell)
