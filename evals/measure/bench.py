"""The speed and memory of one model that runs in one vLLM server: a checkpoint's, a release's, or one that is up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.measure import interleave, latency
from evals.measure import transformers_baseline as plain
from evals.measure.interleave import Target
from evals.measure.latency import Load
from evals.measure.transformers_baseline import Plain
from evals.server import client, first_questions, footprint, memory, vllm_server
from evals.server.client import Progress
from evals.server.footprint import Footprint
from evals.server.vllm_server import Server
from qpack.core import jsonfile
from qpack.core.errors import EvaluateError
from qpack.core.frozen import Frozen
from qpack.core.records import Hardware
from qpack.core.speed import Interleaved, Latency
from qpack.runtime.worker import Interpreter

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A model to start: its name, its folder, how vLLM is started on it, and whether its weights are random. `plain` is
    how it is started beside that without its draft, if it has one; `prompts` what both are then sent.
    """

    name: str
    checkpoint: Path
    command: vllm_server.Command
    hardware: Hardware
    random_weights: bool
    dtype: str
    start_timeout: float
    plain: vllm_server.Command | None = None
    prompts: Path | None = None


@dataclass(frozen=True)
class Tools:
    """vLLM's interpreter for the load, a folder for its raw results, a log, who is told, and who knows the free bytes
    of the accelerator.
    """

    vllm: Interpreter
    out: Path
    log: Path
    progress: Progress
    tell: Tell
    free_accelerator: Callable[[], int] = lambda: 0


class Benched(Frozen):
    """Speed and memory of one model without a recipe. `random_weights` marks a model that only has the shape,
    `drafting` is the load on the server without its draft (reference) and with it, in turn.

    `hardware`, `start_seconds` and `footprint` are None where the server was up already and didn't say.
    """

    model: str
    quantization: str
    random_weights: bool
    server: str
    hardware: Hardware | None
    start_seconds: float | None
    footprint: Footprint | None
    latency: Latency
    plain: Plain | None = None
    drafting: Interleaved | None = None


def start(subject: Subject, load: Load, seed: int, tools: Tools, *, against_transformers: bool) -> Benched:
    """Start vLLM on `subject`, put `load` on it, stop it, and generate the same in plain transformers if asked.

    Raises EvaluateError.
    """
    config = config_of(subject.checkpoint / "config.json")
    if against_transformers and config.get("quantization_config"):
        hint = "Name the source model too, and compare with that."
        raise EvaluateError(f"plain transformers doesn't run {subject.name}, which is quantized", hint=hint)
    found = _start(subject, config, load, seed, tools)
    if not against_transformers:
        return found
    tools.tell("generating with plain transformers")
    compared = plain.measure(
        tools.vllm,
        load,
        checkpoint=subject.checkpoint,
        random_weights=subject.random_weights,
        dtype=subject.dtype,
        seed=seed,
        out=tools.out.with_name("plain"),
        log=tools.log.with_suffix(".plain.log"),
        progress=tools.progress,
    )
    return found.model_copy(update={"plain": compared})


def _start(subject: Subject, config: dict[str, Any], load: Load, seed: int, tools: Tools) -> Benched:
    tools.tell(f"starting vLLM on {subject.name}")
    with vllm_server.running(
        subject.command,
        model=subject.name,
        log=tools.log,
        timeout=subject.start_timeout,
        progress=tools.progress,
    ) as server:
        tools.tell(f"vLLM {server.version} is up after {server.start_seconds:.0f} s")
        if not subject.random_weights:
            first_questions.measure(base_url=server.base_url, model=server.model, chat=False)
        with memory.watch(server.pid, interval=5.0) as peak:
            speed = _load(tools, load, server.base_url, server.model, subject.checkpoint, seed)
        held = footprint.read(
            tools.log.read_text(errors="replace"),
            memory.scrape(server.base_url),
            resident_bytes=peak.bytes,
            max_model_len=client.max_model_len(server.base_url, server.model),
        )
        return Benched(
            model=server.model,
            quantization=quantization(config),
            random_weights=subject.random_weights,
            server=f"vllm {server.version}",
            hardware=subject.hardware,
            start_seconds=server.start_seconds,
            footprint=held,
            latency=speed,
            drafting=_drafting(subject, subject.plain, server, held, load, seed, tools) if subject.plain else None,
        )


def _drafting(
    subject: Subject, plain: vllm_server.Command, server: Server, held: Footprint, load: Load, seed: int, tools: Tools
) -> Interleaved:
    """The server that drafts, and the same without its draft beside it, loaded in turn."""
    if (apart := interleave.too_large(held, tools.free_accelerator)) is not None:
        return Interleaved(tool="none", levels=(), apart=apart)
    tools.tell(f"starting vLLM on {subject.name} without its draft, to load both in turn")
    log, timeout = tools.log.with_suffix(".plain.log"), subject.start_timeout
    with vllm_server.running(plain, model=subject.name, log=log, timeout=timeout, progress=tools.progress) as other:
        return interleave.measure(
            tools.vllm,
            load,
            2 * load.repeats,
            reference=Target(other.base_url, other.model, subject.checkpoint),
            subject=Target(server.base_url, server.model, subject.checkpoint),
            seed=seed,
            out=tools.out.with_name("drafting"),
            log=tools.log.with_suffix(".turns.log"),
            prompts=subject.prompts,
            progress=tools.progress,
        )


def attach(url: str, model: str, tokenizer: Path, load: Load, seed: int, tools: Tools) -> Benched:
    """Put `load` on a server that runs already; what it runs on is not known. Raises EvaluateError."""
    tools.tell(f"asking {url}")
    speed = _load(tools, load, url, model, tokenizer, seed)
    try:
        held: Footprint | None = footprint.read(
            "", memory.scrape(url), resident_bytes=None, max_model_len=client.max_model_len(url, model)
        )
    except EvaluateError:
        held = None  # another server than vLLM, or one whose metrics are kept from us
    config = tokenizer / "config.json"
    return Benched(
        model=model,
        quantization=quantization(config_of(config)) if config.is_file() else "unknown",
        random_weights=False,
        server=url,
        hardware=None,
        start_seconds=None,
        footprint=held,
        latency=speed,
    )


def config_of(path: Path) -> dict[str, Any]:
    """A checkpoint's `config.json`. Raises EvaluateError when it is none."""
    try:
        return jsonfile.read_object(path)
    except (OSError, jsonfile.NotJson) as error:
        raise EvaluateError(f"{path} can't be read: it {error}", hint="Fetch or quantize it again.") from error


def quantization(config: dict[str, Any]) -> str:
    """What a checkpoint's `config.json` says of its weights: `bfloat16`, `awq 4 bits g128`, `W4A16 g64`, `FP8 W8A8`.

    `unknown` where it says nothing that is known.
    """
    try:
        return _quantization(config)
    except (AttributeError, TypeError, ValueError):
        return "unknown"


def _quantization(config: dict[str, Any]) -> str:
    said = config.get("quantization_config")
    if not said:
        return str(config.get("dtype") or config.get("torch_dtype") or "unknown")
    if said.get("quant_method") != "compressed-tensors":
        group = said.get("group_size")
        bits = f" {said['bits']} bits" if "bits" in said else ""
        return f"{said.get('quant_method', 'unknown')}{bits}{f' g{group}' if group and group > 0 else ''}"
    kinds = {_scheme(group) for group in said.get("config_groups", {}).values()}
    return " and ".join(sorted(kinds)) or "compressed-tensors"


def _scheme(group: dict[str, Any]) -> str:
    weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
    kind = {"float": "FP", "int": "INT"}.get(weights.get("type", ""), "")
    size = weights.get("group_size")
    name = f"W{weights.get('num_bits', '?')}A{inputs.get('num_bits', 16)}"
    prefix = "" if kind == "INT" and not inputs else f"{kind}{weights.get('num_bits', '')} "
    return f"{prefix}{name}{f' g{size}' if size and size > 0 else ''}"


def _load(tools: Tools, load: Load, url: str, model: str, tokenizer: Path, seed: int) -> Latency:
    return latency.measure(
        tools.vllm,
        load,
        base_url=url,
        model=model,
        tokenizer=tokenizer,
        seed=seed,
        out=tools.out,
        log=tools.log.with_suffix(".bench.log"),
        progress=tools.progress,
    )
