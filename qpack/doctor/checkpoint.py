"""A checkup of a checkpoint with all that it needs from elsewhere: a registry, tokenizers, a real vLLM."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from packaging.version import InvalidVersion, Version

import quantize.checkpoint.reader_environment
from evals.server import eval_environments, vllm_server
from qpack.core.errors import EvaluateError, QuantizeError, RegistryError, invalid_option
from qpack.core.problems import (
    ALREADY_EXISTS,
    FILE_SYSTEM,
    NOT_A_FOLDER,
    Code,
    Location,
    Problem,
    worst_first,
)
from qpack.runtime import environments, hardware, worker
from quantize.checkpoint.workers import prompts_job
from quantize.doctor import checkup as doctor
from quantize.doctor import repair
from quantize.doctor.checkup import Checkup
from registry.registries import open_registry
from registry.serving import serving_manifest
from registry.serving.serving_manifest import ServedModel, ServingEngine, ServingManifest

_PROMPTS = Path(__file__).parents[2] / "quantize" / "checkpoint" / "workers" / "prompts_worker.py"
_WORKER_SECONDS = 300.0
_LOAD_SECONDS = 900.0
# Enough for one short answer of a small model on a CPU; a larger model asks for more and says so.
_KV_CACHE_BYTES = 1 << 28
_LOAD_LENGTH = 256

_TOKENIZER = Code("tokenizer", "A tokenizer can't be loaded.")
_PROMPT = Code("prompt", "A conversation or a text is rendered or tokenized differently from the source's.")
_LOAD = Code("load", "vLLM's result: a note if it loaded and answered, else an error.")

Report = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What a checkup was asked for."""

    target: str
    against: str | None = None
    vllm: str | None = None
    dtype: str | None = None
    whole: bool = False
    load: bool = False
    output: Path | None = None


@dataclass(frozen=True)
class Examined:
    """The checkup, and what was repaired into the copy."""

    name: str
    checkup: Checkup
    repaired: tuple[str, ...] = ()
    output: Path | None = None


def examine(asked: Asked, home: Path, registry: Path, report: Report) -> Examined:
    """Look at a folder or a release. With `output`, repair into a copy there, and look at that one again."""
    release = version(asked.vllm)
    with _folder(asked.target, home, registry) as folder, _source(asked.against, home, registry) as against:

        def look(at: Path) -> Checkup:
            found = doctor.examine(at, against=against, vllm=release, dtype=asked.dtype, whole=asked.whole)
            if against is not None:
                found = _also(found, _prompts(at, against, home, report))
            return _also(found, _load(at, asked.dtype, home, report)) if asked.load and asked.output is None else found

        checkup = look(folder)
        if asked.output is None:
            return Examined(asked.target, checkup)
        if asked.output.exists():
            raise QuantizeError(
                ALREADY_EXISTS, f"{asked.output} already exists", hint="Name a folder that doesn't exist."
            )
        try:
            done = repair.fix(checkup.checkpoint, checkup.findings, asked.output, against, release)
        except OSError as error:
            raise QuantizeError(
                FILE_SYSTEM, f"{asked.output} can't be written: {error}", hint="Name another folder for --output."
            ) from error
        again = look(asked.output)
        if asked.load:
            again = _also(again, _load(asked.output, asked.dtype, home, report))
        return Examined(asked.target, again, tuple(done), asked.output)


def version(text: str | None) -> Version | None:
    """A release of vLLM. Raises RecipeError when it isn't one."""
    try:
        return Version(text) if text else None
    except InvalidVersion as error:
        raise invalid_option("--vllm", f"{text!r} is not a version", "Write it as 0.13.0.") from error


def _also(checkup: Checkup, findings: list[Problem]) -> Checkup:
    return replace(checkup, findings=worst_first([*checkup.findings, *findings]))


@contextlib.contextmanager
def _folder(target: str, home: Path, registry: Path) -> Iterator[Path]:
    """A folder as it is, a release as it is pulled, for as long as it is looked at."""
    path = Path(target).expanduser()
    if path.is_dir():
        yield path.absolute()
        return
    if path.exists():
        raise QuantizeError(NOT_A_FOLDER, f"{target}: is a file", hint="Name the folder of a checkpoint, or a release.")
    if "/" in target:
        raise QuantizeError(
            NOT_A_FOLDER, f"{target}: no such folder", hint="Name the folder of a checkpoint, or a release."
        )
    opened = open_registry("local", str(registry))
    try:
        release = opened.resolve(target)
    except RegistryError as error:
        hint = f"There is no folder of that name either. {error.hint}".strip()
        raise RegistryError(error.code, error.what, hint=hint) from error
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="doctor-", dir=home) as temporary:
        opened.pull(release, Path(temporary) / "release")
        yield Path(temporary) / "release" / "model"


@contextlib.contextmanager
def _source(against: str | None, home: Path, registry: Path) -> Iterator[Path | None]:
    if against is None:
        yield None
        return
    with _folder(against, home, registry) as folder:
        yield folder


def _prompts(folder: Path, against: Path, home: Path, report: Report) -> list[Problem]:
    """Chat prompts and texts through both tokenizers."""
    spec = quantize.checkpoint.reader_environment.TRANSFORMERS
    environment = environments.ensure(environments.resolve(spec, "cpu", home), home, report)
    report("comparing prompts with the source's")
    with tempfile.TemporaryDirectory(prefix="doctor-", dir=home) as out:
        try:
            log = home / "logs" / "doctor-prompts.log"
            call = worker.Call(environment, Path(out), log, _WORKER_SECONDS, QuantizeError)
            answer = worker.run(_PROMPTS, prompts_job.Job(str(folder), str(against)), prompts_job.Answer, call)
        except QuantizeError as error:
            what = f"a tokenizer can't be loaded: {error.what}"
            return [Problem(_TOKENIZER, what, hint="Copy the source's tokenizer files.")]
    return [_difference(found) for found in answer.differences]


def _difference(found: prompts_job.Difference) -> Problem:
    ours, wanted = found.checkpoint, found.source
    if ours.refused or wanted.refused:
        what = f"a {found.kind} gives {_brief(ours)}, and with the source {_brief(wanted)}"
    elif ours.text != wanted.text:
        what = f"a conversation is rendered as {ours.text!r}, and by the source as {wanted.text!r}"
    else:
        a, b = ours.ids, wanted.ids
        at = next((i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b)))
        what = f"a {found.kind} is {len(a)} tokens, the source's {len(b)}; they part at token {at}"
    return Problem(_PROMPT, what, Location(name="tokenizer"), "Take the source's tokenizer and chat template.")


def _silent(_done: int, _total: int, _what: str) -> None:
    """No progress: a checkup says when it starts something long, and then what it found."""


def _brief(prompt: prompts_job.Rendered) -> str:
    return prompt.refused or f"{len(prompt.ids)} tokens"


def _load(folder: Path, dtype: str | None, home: Path, report: Report) -> list[Problem]:
    """Start a real vLLM on it and ask for a few tokens: what the reader of last resort says."""
    target = hardware.detect().target
    spec = eval_environments.VLLM
    environment = environments.ensure(
        environments.resolve(spec, "cpu" if target == "cpu" else "cuda", home), home, report
    )
    report("loading it in vLLM")
    manifest = ServingManifest(
        model=ServedModel(name="checkup", digest="", served_model_name="checkup"),
        engine=ServingEngine(version="unknown"),
        hardware=target,
        dtype=dtype or "auto",
        max_model_len=_LOAD_LENGTH,
        kv_cache_memory_bytes=_KV_CACHE_BYTES,
        arguments={"enforce-eager": True},
    )
    command = vllm_server.Command(
        environment.python,
        lambda host, port: serving_manifest.vllm_arguments(manifest, folder, host=host, port=port),
        {**environment.variables, **({"VLLM_CPU_OMP_THREADS_BIND": "nobind"} if target == "cpu" else {})},
    )
    log = home / "logs" / "doctor-load.log"
    try:
        with vllm_server.running(command, model="checkup", log=log, timeout=_LOAD_SECONDS, progress=_silent) as server:
            return _answer(server)
    except EvaluateError as error:
        what = f"vLLM can't serve it: {error.what}"
        return [Problem(_LOAD, what, hint=f"The whole log: {log}")]


def _answer(server: vllm_server.Server) -> list[Problem]:
    ask = {"model": "checkup", "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0, "logprobs": 1}
    try:
        answer = httpx.post(f"{server.base_url}/v1/completions", json=ask, timeout=300)
        answer.raise_for_status()
        choice = answer.json()["choices"][0]
        probabilities = choice["logprobs"]["token_logprobs"]
    except (httpx.HTTPError, KeyError, ValueError, TypeError) as error:
        what = f"vLLM {server.version} loaded it, and a request failed: {error}"
        return [Problem(_LOAD, what, hint=f"The whole log: {server.log}")]
    if any(p is None or p != p for p in probabilities):
        what = f"vLLM {server.version} loaded it, and its answers have no probabilities (NaN)"
        return [Problem(_LOAD, what, hint="Scales or weights hold values that aren't numbers.")]
    what = f"vLLM {server.version} loaded it in {server.start_seconds:.0f} s and answered {choice['text']!r}"
    return [Problem(_LOAD, what, severity="note")]
