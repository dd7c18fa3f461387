"""What a recipe means here: the model found, the engine and environments chosen, every stage's key. Nothing is run.

A stage's key is the digest of everything that can change its result (`qpack.pipeline.stage_keys`): the keys of stages
before it, its part of the recipe, its environments, the code that makes it, and the hardware where that matters. Equal
key, equal result: a finished stage is never run again, and the baseline's evidence is shared by every recipe that asks
the same questions of the same model.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import quantize.checkpoint.reader_environment
from evals.measure import suite
from evals.server import eval_environments as environments
from qpack.core import hashing, seals
from qpack.core.errors import EnvironmentFailed, QpackError, RecipeError
from qpack.core.jsonfile import JsonObject
from qpack.core.problems import Code, Location, Problem
from qpack.core.store import Store, read_note, write_note
from qpack.pipeline import closure, cpu_support, emulation, planned_serving
from qpack.pipeline.planned import Plan
from qpack.pipeline.stage_keys import Known, Step
from qpack.pipeline.stages import fetch
from qpack.pipeline.stages.catalog import STAGES
from qpack.recipe import effective, generated_answers
from qpack.recipe.eval_requests import requests, tasks
from qpack.recipe.models import Recipe, Texts
from qpack.recipe.recipe_file import DUPLICATE_NAME, Loaded
from qpack.runtime import environments as envs
from qpack.runtime import hardware
from qpack.runtime.environments import ENVIRONMENT_UNAVAILABLE, Environment
from qpack.runtime.variables import server_variables
from quantize.checkpoint import demo_environment, from_config, hub, sources, unpack
from quantize.checkpoint.source import Source
from quantize.engines import catalog
from quantize.engines.protocol import Choice, Engine, Override, Request
from quantize.preflight import defaults, native, needed_flags, own_drafts, preflight, served_models, targets
from registry.lifecycle.signing_environment import MODEL_SIGNING
from registry.release import licences

_NO_ENGINE = Code("no-engine", "No engine makes what the recipe asks for, or the named one doesn't.")
_EMULATED = Code("emulated", "The artifact is judged by a 16-bit twin, because this machine has no kernel for it.")
_NO_ENVIRONMENT = Code("no-environment", "The recipe names an environment that there isn't.")
TEXT_SOURCE = Code("text-source", "A text of the recipe isn't there, is empty, or isn't a file of text.")

SPECS: dict[str, envs.Spec] = {
    spec.name: spec
    for spec in (
        demo_environment.PACKAGES,
        quantize.checkpoint.reader_environment.TRANSFORMERS,
        *(engine.ENVIRONMENT for engine in catalog.ENGINES.values()),
        environments.VLLM,
        environments.LM_EVAL,
        environments.CANARY,
        environments.RAY,
        environments.GUIDELLM,
        environments.INFERENCE_PERF,
        MODEL_SIGNING,
    )
}
"""Every environment that qpack can make."""


def make(
    loaded: Loaded,
    store: Store,
    *,
    thorough: bool,
    config: JsonObject | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Resolve a recipe. `thorough` hashes and fetches whatever the keys need; else nothing takes longer than a moment.

    `config` is the model's config.json, for a model on a hub that can't be reached. `report` gets a line for each
    large file that is hashed.

    Raises RecipeError with every problem, each with file:line.
    """
    r = loaded.recipe
    problems: list[Problem] = []
    machine = hardware.detect()
    meant = machine.target if r.serve.target == "auto" else r.serve.target
    # A twin is served where this runs, whatever GPU the artifact is for.
    target = machine.target if r.evaluate.emulate != "never" and meant != "cpu" else meant
    served_on = planned_serving.runs_on(target, machine)
    source, wrong = sources.find(r.model.source, loaded.base, _digester(store, thorough, report))
    problems += [p if p.where.file else loaded.located(p, "model", "source") for p in wrong]
    stored = None
    if source is not None:
        source = stored = from_config.filled(source, config)
        if r.quantize.method != "none":
            source = _unpacked(source)
    q = r.quantize
    mixed = q.budget is not None
    engine, why = catalog.choose(q.engine, q.method, q.scheme, target, q.format, mixed=mixed, tuned=q.iterations > 0)
    if engine is None:
        problems.append(loaded.problem(_NO_ENGINE, why, "quantize", "engine"))
    request = request_of(r, meant, engine)
    emulated: str | None = None
    complaints = preflight.bad_patterns(request, source)
    if source is not None and not complaints:
        request = defaults.with_kept(request, source)
        kernels = targets.served(request, source, r.serve.tensor_parallel)
        mode = emulation.mode_of(r.evaluate.emulate, request, source)
        aimed = emulation.aim(mode, meant, target, cpu_support.lacking(request, source), kernels)
        meant, emulated = aimed.target, aimed.emulated
        request = replace(request, target=meant)
        complaints += emulation.problems(request, source) if emulated else []
    advice: list[Problem] = []
    if source is not None and not complaints:
        complaints += served_models.quantized_already(source, request.method)
        complaints += served_models.check(source, target, own_vllm="vllm" in r.environments)
        complaints += preflight.check(request, source, meant, r.serve.tensor_parallel)
        complaints += engine.check(request, source) if engine else []
        if planned_serving.KV_CACHE not in r.serve.arguments and r.quantize.kv_cache is None:
            budget = int(r.serve.kv_cache_gib * 2**30)
            complaints += preflight.cache(source, r.serve.max_model_len, budget, r.serve.tensor_parallel)
        complaints += needed_flags.set_wrongly(source, served_on, r.serve.arguments, "serve", "arguments")
        dropped_by = engine.NAME if engine is not None and not engine.KEEPS_UNLOADED else None
        complaints += own_drafts.check(source, r.serve.arguments, dropped_by, "serve", "arguments")
        if r.evaluate.native_baseline and stored is not None:
            complaints += native.check(stored, source, request, served_on, r.serve.tensor_parallel)
        advice = served_models.unpacked(source)
        advice += preflight.advise(request, source, meant, r.serve.tensor_parallel)
        advice += needed_flags.advise(source, served_on, r.serve.arguments)
        if dropped_by is not None:
            advice += preflight.left_behind(source)
        if emulated:
            where = Location(key=("evaluate", "emulate"))
            what = f"the artifact is judged by its 16-bit twin: {emulated}. Speed and memory don't count."
            advice.append(Problem(_EMULATED, what, where, severity="note"))
        elif (lacks := cpu_support.lacking(request, source)) is not None:
            advice.append(
                replace(lacks, message=f"{lacks.message}: `build` will refuse it on this machine", severity="warning")
            )
        for name, profile in r.serve.profiles.items():
            shared = profile.tensor_parallel or r.serve.tensor_parallel
            at = ("serve", "profiles", name, "arguments")
            complaints += needed_flags.set_wrongly(
                source, profile.target or served_on, profile.arguments, *at, base=r.serve.arguments
            )
            complaints += own_drafts.check(source, profile.arguments, dropped_by, *at)
            found = preflight.check(request, source, profile.target or meant, shared)
            # Problems without the profile are reported already.
            problems += [
                loaded.located(complaint, "serve", "profiles", name)
                for complaint in found
                if complaint not in complaints
            ]
    problems += [loaded.located(complaint) for complaint in complaints]
    for i, choice in enumerate(r.evaluate.tasks):
        for wanted in requests(r, choice):
            own = "lm-eval" not in r.environments
            if (wrong_task := suite.problem(wanted, locked=own, run_code=r.evaluate.run_code)) is not None:
                problems.append(loaded.located(wrong_task, "evaluate", "tasks", i, "task"))
            elif [task.name for task in tasks(r)].count(wanted.name) > 1:
                problems.append(
                    loaded.problem(DUPLICATE_NAME, f"{wanted.name} is a duplicate", "evaluate", "tasks", i, "task")
                )
    problems += generated_answers.problems(loaded)
    problems += generated_answers.no_template(loaded, source.path if source else None)
    problems += generated_answers.no_pictures(loaded, source.config) if source else []
    advice += generated_answers.unplaced_pictures(loaded, source.path, source.config) if source else []
    asked = r.evaluate.perplexity
    held_out: list[Path | None] = []
    unknown_held_out: list[str] = []
    for i, text in enumerate(asked.each()):
        at = ("evaluate", "perplexity", *(("texts", i) if asked.texts else ()), "source")
        file, unknown = _texts(loaded, text, at, thorough, problems)
        held_out.append(file)
        unknown_held_out += unknown
    calibration, unknown_texts = (
        _texts(loaded, r.calibration, ("calibration", "source"), thorough, problems) if r.calibration else (None, ())
    )
    if problems or source is None or engine is None:
        raise RecipeError.of(problems)
    variant = "cpu" if target == "cpu" else "cuda"
    made = _environments(loaded, store, (engine.ENVIRONMENT.name, *fetch.environments_of(source)), variant)
    advice += licences.check(r.model.license)
    advice += [
        Problem(
            ENVIRONMENT_UNAVAILABLE,
            f"the environment '{name}' can't be made here: {why}",
            Location(key=("environments", name)),
            envs.own_hint(environment),
            "warning",
        )
        for name, environment in made.items()
        if (why := envs.unavailable(environment))
    ]
    try:
        serving = planned_serving.serving(r, request, target, machine, made["vllm"], source)
    except RecipeError as error:
        raise RecipeError.of([loaded.located(problem) for problem in error.problems]) from error
    if unshared := [loaded.located(problem) for problem in planned_serving.unshared(serving, source, request)]:
        raise RecipeError.of(unshared)
    digest = _digester(store, thorough, report)
    with code_reader(store) as code:
        emulation_inputs = emulation.inputs(code) if emulated else {}
        known = Known(
            recipe=r,
            request=request,
            source=source,
            engine=engine,
            machine=machine,
            target=target,
            environments=made,
            serving=serving,
            held_out=[digest(file) if file else None for file in held_out],
            calibration=digest(calibration) if calibration else None,
            variables=server_variables(os.environ),
            text=effective.text(loaded),
            digest=digest,
            code=code,
            emulation=emulation_inputs,
            packed=stored if r.evaluate.native_baseline else None,
        )
        steps = _steps(known)
    return Plan(
        loaded=loaded,
        source=source,
        engine=engine,
        why_engine=why,
        request=request,
        hardware=machine,
        target=target,
        environments=made,
        serving=serving,
        steps={name: step for name, step in steps.items() if not step.late},
        late={name: step for name, step in steps.items() if step.late},
        held_out=tuple(file for file in held_out if file),
        calibration=calibration,
        unchecked=(*source.unchecked, *unknown_held_out, *unknown_texts),
        kernels=targets.served(request, source, r.serve.tensor_parallel),
        advice=tuple(map(loaded.located, advice)),
        emulated=emulated,
        emulation_inputs=emulation_inputs,
        packed=known.packed,
    )


def _steps(known: Known) -> dict[str, Step]:
    """Every step of every stage, in order."""
    found: dict[str, Step] = {}
    for stage in STAGES:
        for step in stage.steps(known, found):
            found[step.name] = step
    return found


def _unpacked(source: Source) -> Source:
    """The source as it is after `fetch`, which unpacks it where it is quantized already in a format that is known."""
    if source.quantization is None:
        return source
    # numpy, and few plans need it.
    from quantize.emulate import dense

    return unpack.unpacked(source) or dense.of(source) or source


def request_of(r: Recipe, target: str, engine: Engine | None) -> Request:
    """What the recipe asks of an engine. `target` is the hardware that the artifact is for."""
    q = r.quantize
    return Request(
        *(q.method, q.scheme, q.group_size, q.ignore, q.damping, r.model.trust_remote_code),
        format=q.format or (engine.FORMATS[0] if engine else None),
        budget=q.budget,
        target=target,
        tensor_parallel=r.serve.tensor_parallel,
        overrides=tuple(Override(other.layers, other.scheme, other.group_size) for other in q.overrides),
        kv_cache=q.kv_cache,
        iterations=q.iterations,
        choices=tuple(Choice(one.layers, one.schemes, one.group_size) for one in q.choices),
        per_token=q.budget_per == "token",
    )


def _texts(
    loaded: Loaded, texts: Texts, at: tuple[str | int, ...], thorough: bool, problems: list[Problem]
) -> tuple[Path | None, tuple[str, ...]]:
    """The file of a text source; None and what is unchecked when it is on a hub and isn't fetched for a plan."""
    try:
        if not texts.source.startswith("hf://"):
            file = sources.file_of(texts.source, loaded.base)
            if file.is_dir() or file.stat().st_size == 0:
                what = "is a folder; name a .jsonl or .txt file" if file.is_dir() else "is empty"
                problems.append(loaded.problem(TEXT_SOURCE, f"{texts.source} {what}", *at))
            return file, ()
        if thorough:
            return hub.download_file(texts.source), ()
        hub.Reference.parse(texts.source)
    except EnvironmentFailed:
        raise
    except QpackError as error:
        problems.append(loaded.problem(TEXT_SOURCE, error.what, *at, hint=error.hint))
        return None, ()
    return None, (f"texts: {texts.source} (fetched by `qpack build`)",)


def _environments(loaded: Loaded, store: Store, engines: tuple[str, ...], variant: str) -> dict[str, Environment]:
    own = loaded.recipe.environments
    unknown = sorted(set(own) - set(SPECS))
    if unknown:
        hint = f"One of: {', '.join(SPECS)}."
        raise RecipeError.of(
            [
                loaded.problem(_NO_ENVIRONMENT, "unknown environment.", "environments", name, hint=hint)
                for name in unknown
            ]
        )
    wanted = ("transformers", *engines, "vllm", "lm-eval", "canary", *loaded.recipe.measure.also)
    return {name: envs.resolve(SPECS[name], variant, store.home, own.get(name)) for name in wanted}


@contextlib.contextmanager
def code_reader(store: Store) -> Iterator[closure.Reader]:
    """A reader of qpack's own source, which remembers what it has read from one process to the next: beside the code,
    like Python's bytecode, or in the store where that can't be written.
    """
    shared, name = closure.beside_the_code(), f"code-{closure.analysis()}"
    reader = closure.Reader(known=closure.from_note(read_note(shared) or store.recall(name)))
    before = len(reader.known)
    yield reader
    if len(reader.known) != before:
        found = closure.to_note(reader.known)
        if sys.dont_write_bytecode or not write_note(shared, found):
            store.remember(name, found)


def _digester(store: Store, thorough: bool, report: Callable[[str], None] = lambda _: None) -> Any:
    """SHA-256 of a file, remembered by its path, size and times of change; None when it isn't known and would take
    long.
    """

    def digest(path: Path) -> str | None:
        state, now = path.stat(), time.time_ns()
        seen = {
            "path": str(path),
            "size": state.st_size,
            "inode": state.st_ino,
            "mtime_ns": state.st_mtime_ns,
            "ctime_ns": state.st_ctime_ns,
        }
        name = "digest-" + hashlib.sha256(str(path).encode()).hexdigest()[:32]
        note = store.recall(name)
        if {key: note.get(key) for key in seen} == seen:
            return str(note["sha256"])
        if not thorough and state.st_size > seals.GLANCE:
            return None
        if state.st_size > seals.GLANCE:
            report(f"hashing {path.name}, {state.st_size / 2**30:.1f} GiB; it is done once")
        found = hashing.sha256_once(path)
        if hashing.settled(state, now):
            store.remember(name, {**seen, "sha256": found})
        return found

    return digest
