"""What a recipe means here: the model found, the engine and environments chosen, every stage's key. Nothing is run.

A stage's key is the digest of all that can change its result: the keys of the stages before it, its part of the
recipe, the lock of its environment, the source of its worker, and the hardware where that matters. Equal key, equal
result: a finished stage is never run again, and the baseline's evidence is shared by every recipe that asks the same
questions of the same model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import quantize.environments
from evals import environments, probes, suite
from qpack import envs, files, hardware, manifest, this_cpu
from qpack.envs import Environment
from qpack.errors import EnvironmentFailed, Problem, QpackError, RecipeError
from qpack.held_out import asked as held_out_ask
from qpack.questions import in_looks, requests, stop_rule, tasks
from qpack.recipe import Loaded
from qpack.results import Hardware
from qpack.sections import Recipe, Texts
from qpack.store import Store, key_of
from qpack.variables import server_variables
from quantize import engines, from_config, hub, preflight, sources, targets
from quantize.engine import Complaint, Engine, Override, Request
from quantize.source import Source
from quantize.targets import Served
from registry.environments import MODEL_SIGNING
from registry.serving_manifest import DRAFT, LAUNCH, ServingManifest

# Above this a file is not hashed just to show a plan; `qpack build` hashes it once and remembers.
_HASHED_FOR_A_PLAN = 512 * 2**20

# The modules of evals that make a comparison and a verdict: what they decide is in the key of the judgement.
_JUDGES = (
    *("anomalies", "compare", "contamination", "continuations", "divergence", "gates", "looks", "multiplicity"),
    *("needle", "score_interval", "sequential", "stats", "verdicts"),
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
    held_out: tuple[Path, ...]
    calibration: Path | None
    unchecked: tuple[str, ...]
    advice: tuple[Problem, ...] = ()
    kernels: tuple[Served, ...] = ()

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.loaded.recipe

    def served(self, who: str) -> ServingManifest:
        """The serving manifest of `baseline` or `artifact`."""
        return manifest.served(self.serving, self.recipe, who)

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
        environments.CANARY,
        environments.RAY,
        MODEL_SIGNING,
    )
}
"""Every environment that qpack can make."""


def make(loaded: Loaded, store: Store, *, thorough: bool, config: Mapping[str, Any] | None = None) -> Plan:
    """Resolve a recipe. `thorough` hashes and fetches whatever the keys need; else nothing takes longer than a moment.

    `config` is the model's config.json, for a model on a hub that can't be reached.

    Raises RecipeError with everything that can't work, at once, each with file:line.
    """
    r = loaded.recipe
    problems: list[Problem] = []
    machine = hardware.detect()
    target = machine.target if r.serve.target == "auto" else r.serve.target
    source, wrong = sources.find(r.model.source, loaded.base, _digester(store, thorough))
    problems += [Problem(p.what, p.where or loaded.file.where(("model", "source")), p.hint) for p in wrong]
    if source is not None:
        source = from_config.filled(source, config)
    q = r.quantize
    mixed = q.budget is not None
    engine, why = engines.choose(q.engine, q.method, q.scheme, target, q.format, mixed=mixed)
    if engine is None:
        problems.append(loaded.problem(why, "quantize", "engine"))
    request = _request(r, target, engine)
    complaints = preflight.bad_patterns(request, source)
    advice: list[Complaint] = []
    if source is not None and not complaints:
        complaints += preflight.check(request, source, target, r.serve.tensor_parallel)
        complaints += engine.check(request, source) if engine else []
        if manifest.KV_CACHE not in r.serve.arguments and r.quantize.kv_cache is None:
            budget = int(r.serve.kv_cache_gib * 2**30)
            complaints += preflight.cache(source, r.serve.max_model_len, budget, r.serve.tensor_parallel)
        advice = preflight.advise(request, source, target, r.serve.tensor_parallel)
        if (lacks := this_cpu.lacking(request)) is not None:
            advice.append(replace(lacks, what=f"{lacks.what}: `build` refuses it here"))
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
        for wanted in requests(r, choice):
            if (wrong_task := suite.problem(wanted)) is not None:
                problems.append(loaded.problem(wrong_task.what, "evaluate", "tasks", i, "task", hint=wrong_task.hint))
            elif [task.name for task in tasks(r)].count(wanted.name) > 1:
                problems.append(loaded.problem(f"{wanted.name} is asked twice", "evaluate", "tasks", i, "task"))
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
    made = _environments(loaded, store, engine, variant)
    serving = manifest.serving(r, target, made["vllm"])
    digest = _digester(store, thorough)
    texts, rows = [digest(file) if file else None for file in held_out], digest(calibration) if calibration else None
    stages = _stages(r, request, source, engine, machine, target, made, serving, texts, rows)
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
        held_out=tuple(file for file in held_out if file),
        calibration=calibration,
        unchecked=(*source.unchecked, *unknown_held_out, *unknown_texts),
        kernels=targets.served(request, source, r.serve.tensor_parallel),
        advice=tuple(loaded.problem(a.what, *a.at, hint=a.hint) for a in advice),
    )


def _request(r: Recipe, target: str, engine: Engine | None) -> Request:
    q = r.quantize
    return Request(
        *(q.method, q.scheme, q.group_size, q.ignore, q.damping, r.model.trust_remote_code),
        format=q.format or (engine.FORMATS[0] if engine else None),
        budget=q.budget,
        target=target,
        tensor_parallel=r.serve.tensor_parallel,
        overrides=tuple(Override(other.layers, other.scheme, other.group_size) for other in q.overrides),
        kv_cache=q.kv_cache,
    )


def _texts(
    loaded: Loaded, texts: Texts, at: tuple[str | int, ...], thorough: bool, problems: list[Problem]
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
    wanted = ("transformers", engine.ENVIRONMENT.name, "vllm", "lm-eval", "canary")
    return {name: envs.resolve(SPECS[name], variant, store.home, own.get(name)) for name in wanted}


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
    request: Request,
    source: Source,
    engine: Engine,
    machine: Hardware,
    target: str,
    made: Mapping[str, Environment],
    serving: ServingManifest,
    held_out: list[str | None],
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
    known = None if None in held_out else held_out if r.evaluate.perplexity.texts else held_out[0]
    add("hold_out", ("fetch",), **reader, texts=known, ask=held_out_ask(r.evaluate.perplexity))
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
        request=request.key(engine.FORMATS[0]),
        hardware=target,
    )
    # The served name is in every request, and each recipe has its own; the answers don't depend on it.
    # An artifact that is the source, byte for byte, isn't measured again.
    same = request.method == "none"
    for who, model in (("baseline", "fetch"), ("artifact", "fetch" if same else "quantize")):
        server = manifest.served(serving, r, who).model_dump(mode="json", include=LAUNCH)
        common = {"serving": server, "vllm": made["vllm"].digest, "variables": server_variables(os.environ)}
        place = machine.model_dump(mode="json", exclude={"memory_bytes"})  # differs a little from boot to boot
        parts = ("canary.py", "latency.py", "memory.py", "workers/vllm_bench_worker.py")
        code = _source_digest(*(_ROOT / "evals" / name for name in parts))
        add(
            f"{who}.performance",
            (model,),
            **common,
            code=code,
            ask=r.measure.model_dump(mode="json", exclude={"rounds"}),
            seed=r.evaluate.seed,
            hardware=place,
        )
        code = _source_digest(_ROOT / "evals" / "perplexity.py")
        add(f"{who}.language", (model, "hold_out"), **common, code=code, top_k=r.evaluate.top_k, hardware=target)
        if r.evaluate.perplexity.continue_tokens:
            own = {"code": _source_digest(_ROOT / "evals" / "continuations.py"), "hardware": target}
            tokens = r.evaluate.perplexity.continue_tokens
            add(f"{who}.continuations", (model, "hold_out"), **common, **own, tokens=tokens)
        if (needle := r.evaluate.needle) is not None:
            own = {"code": _source_digest(_ROOT / "evals" / "needle.py"), "hardware": target}
            ask = {**needle.model_dump(mode="json"), "seed": r.evaluate.seed}
            add(f"{who}.needle", (model, "hold_out"), **common, **own, ask=ask)
        code = _source_digest(*(_ROOT / "evals" / name for name in ("accuracy.py", "workers/lm_eval_worker.py")))
        ask = {"tasks": [dataclasses.asdict(task) for task in tasks(r)], "seed": r.evaluate.seed}
        stop = {}
        if who == "artifact" and in_looks(r):
            rule = _source_digest(
                *(_ROOT / "evals" / f"{name}.py" for name in ("looks", "sequential", "stats", "gates"))
            )
            stop = {"stop": {"rule": [*stop_rule(r), rule], "baseline": stages["baseline.accuracy"].key}}
        add(
            f"{who}.accuracy",
            (model,),
            **common,
            code=code,
            task_files=_source_digest(*_task_files(r)),
            ask=ask,
            lm_eval=made["lm-eval"].digest,
            hardware=target,
            **stop,
        )
        if who == "artifact":
            add(
                "artifact.proof",
                (model,),
                **common,
                code=_source_digest(probes.WORKER),
                client=made["canary"].digest,
                promise=manifest.promise(serving).model_dump(mode="json"),
                hardware=target,
            )
        if who == "artifact" and r.measure.rounds:
            # Both models' servers are up for it, so it belongs to the pair; what is each one's own stays shared.
            workers = ("workers/vllm_bench_worker.py", "workers/vllm_turns_worker.py")
            code = _source_digest(*(_ROOT / "evals" / name for name in ("latency.py", "interleave.py", *workers)))
            asked = r.measure.model_dump(include={"concurrency", "input_tokens", "output_tokens", "rounds"})
            pair = {"seed": r.evaluate.seed, "hardware": place}
            add(f"{who}.interleaved", ("fetch", "quantize"), **common, **pair, code=code, ask=asked)
            if DRAFT in serving.arguments:
                add(f"{who}.drafting", ("quantize", "hold_out"), **common, **pair, code=code, ask=asked)
    evidence = tuple(name for name in stages if name.partition(".")[0] in ("baseline", "artifact"))
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
