"""Evidence of a build's two models: what is asked of each, through which server, kept under which key."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evals.measure import suite
from evals.measure.accuracy import Part as Share
from evals.measure.asks import Tasks
from evals.parts import continuations, interleaved, language, needle, performance, proof, tasks
from evals.parts.collect_evidence import Done, Observed, Part, observe
from evals.parts.interleaved import Rival
from evals.parts.session import Session, Setting, Subject
from evals.server.vllm_server import Command
from qpack.core.records import Accuracy, Memory
from qpack.core.store import key_of
from qpack.pipeline import release_records, requirements
from qpack.pipeline.needed import need
from qpack.pipeline.planned_serving import promise
from qpack.pipeline.state import Build
from qpack.recipe import eval_requests
from qpack.runtime import hardware
from registry.serving import serving_manifest

Make = Callable[[Session, Done, Path], Any]
Stop = Callable[[Accuracy], bool]


def baseline(build: Build) -> Observed:
    """The source model's."""
    return _observe(build, "baseline", _source(build), {}, None)


def artifact(build: Build) -> Observed:
    """The artifact's. Without a baseline it alone is asked about, and everything (`qpack reproduce`)."""
    known, name = build.baseline, build.plan.recipe.name
    rivals: dict[str, Rival] = {}
    stop = None
    if known is not None:
        stop = eval_requests.stop_of(build.plan.recipe, known.accuracy.result)
        if "artifact.interleaved" in build.plan.stages:
            rivals["interleaved"] = _rival(_source(build, without=()), known.performance.result.memory)
        if "artifact.drafting" in build.plan.stages:
            rivals["drafting"] = _rival(_made(build, name, without=(serving_manifest.DRAFT,)), None)
    return _observe(build, "artifact", _made(build, name), rivals, stop)


def _rival(subject: Subject, memory: Memory | None) -> Rival:
    return Rival(subject, memory, hardware.free_accelerator_bytes)


def _source(build: Build, without: tuple[str, ...] | None = None) -> Subject:
    source = need(build.fetched)
    return _subject(build, "baseline", "baseline", source.result.digest, source.folder / "checkpoint", without)


def _made(build: Build, name: str, without: tuple[str, ...] | None = None) -> Subject:
    made = need(build.quantized)
    return _subject(build, "artifact", name, made.result.digest, made.folder / "checkpoint", without)


def _subject(
    build: Build, who: str, name: str, digest: str, checkpoint: Path, without: tuple[str, ...] | None
) -> Subject:
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
    return Subject(name, checkpoint, command, port, r.serve.max_model_len)


def _observe(build: Build, who: str, subject: Subject, rivals: dict[str, Rival], stop: Stop | None) -> Observed:
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
    setting = Setting(
        tools=tools,
        windows=need(build.held_out).folder / "tokens.jsonl",
        log=build.store.log(who, plan.key(f"{who}.performance")),
        start_timeout=plan.recipe.limits.server_start_minutes * 60,
        timeout=build.limit,
        progress=build.console.progress,
        tell=build.console.tell,
    )
    makers = _makers(build, who, rivals, stop)
    parts = [
        Part(part, plan.key(step.name), step.inputs, build.uses(step.inputs), make)
        for part, make in makers.items()
        for step in (plan.stages[f"{who}.{part}"],)
    ]
    return observe(subject, parts, setting, build.store)


def _makers(build: Build, who: str, rivals: dict[str, Rival], stop: Stop | None) -> dict[str, Make]:
    """What makes each part that the plan asks for, in the order in which they are asked."""
    asks = eval_requests.asks(build.plan.recipe, need(build.held_out).result.domains)
    wanted = asks.tasks

    def in_turn(session: Session, done: Done, out: Path, part: str) -> Any:
        own = done["performance"].result.memory
        return interleaved.measure(session, getattr(asks, part), rivals[part], own, out)

    makers: dict[str, Make] = {
        "performance": lambda session, _, out: performance.measure(session, asks.performance, out),
        **{part: functools.partial(in_turn, part=part) for part in rivals},
        "proof": lambda session, _, out: proof.measure(session, promise(build.plan.served(who)), out),
        "language": lambda session, _, out: language.measure(session, asks.language, out),
        "continuations": lambda session, _, __: continuations.measure(session, asks.continue_tokens),
        "needle": lambda session, _, __: needle.measure(session, need(asks.needle)),
        "accuracy": lambda session, _, out: (
            tasks.measure(session, wanted, out) if stop is None else _in_looks(build, session, wanted, stop)
        ),
    }
    return {part: make for part, make in makers.items() if f"{who}.{part}" in build.plan.stages}


def _in_looks(build: Build, session: Session, wanted: Tasks, stop: Stop) -> Accuracy:
    from evals.parts import in_looks

    inputs = build.plan.stages["artifact.accuracy"].inputs

    def ask(part: Share) -> Accuracy:
        # The key of a part doesn't hold the rule for stopping, so another bound asks nothing twice.
        own = {name: value for name, value in inputs.items() if name != "stop"} | {"part": list(part)}
        return build.store.once(
            "accuracy",
            key_of(own),
            Accuracy,
            lambda out: tasks.measure(session, wanted, out, part),
            inputs=own,
            tell=build.console.tell,
            uses=build.uses(own),
        ).result

    return in_looks.measure(ask, stop, build.console.tell)
