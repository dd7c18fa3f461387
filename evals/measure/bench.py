"""Speed and memory of one model in one vLLM server: of a checkpoint, of a release, or of a running server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.measure import interleave, latency, load_tools, transformers_baseline
from evals.measure.eval_specs import InterleavedSpec, PerformanceSpec
from evals.measure.interleave import Target
from evals.measure.transformers_baseline import TransformersSpeed
from evals.server import client, first_questions, footprint, memory, vllm_server
from evals.server.client import Endpoint
from evals.server.footprint import Footprint
from evals.server.session import ServedModel, Session, Workspace, serving
from evals.server.vllm_server import Server
from evals.workers.load_tool_job import Tool
from qpack.core import checkpoint_files, jsonfile
from qpack.core.errors import EvaluateError
from qpack.core.frozen import Frozen
from qpack.core.problems import UNREADABLE_FILE, Code
from qpack.core.records import Hardware
from qpack.core.speed import Interleaved, Latency, ToolLoad

_NOT_BY_TRANSFORMERS = Code("not-by-transformers", "transformers alone can't run a quantized model.")


@dataclass(frozen=True)
class BenchModel:
    """A model to start: how it is served, its data type, the machine, and whether its weights are random.

    `without_draft` is how the same server is started without its draft, if it has one; `prompts` what both are sent;
    `also` are other load generators.
    """

    served: ServedModel
    hardware: Hardware
    dtype: str
    random_weights: bool
    without_draft: vllm_server.Command | None = None
    prompts: Path | None = None
    also: tuple[Tool, ...] = ()


class Benched(Frozen):
    """Speed and memory of one model without a recipe. `random_weights` marks a model without trained weights;
    `drafting` is the load on the server without its draft (reference) and with it, in turn; `plain` the speed of
    transformers without a server; `loads` are by other load generators.

    `hardware`, `start_seconds` and `footprint` are None for a server that was running already and doesn't report them.
    """

    model: str
    quantization: str
    random_weights: bool
    server: str
    hardware: Hardware | None
    start_seconds: float | None
    footprint: Footprint | None
    latency: Latency
    plain: TransformersSpeed | None = None
    drafting: Interleaved | None = None
    loads: tuple[ToolLoad, ...] = ()


def start(model: BenchModel, spec: PerformanceSpec, workspace: Workspace, *, against_transformers: bool) -> Benched:
    """Start vLLM on the model, put the load on it, stop it, and generate the same with transformers alone if asked.

    Raises EvaluateError.
    """
    served = model.served
    config = config_of(served.checkpoint / "config.json")
    if against_transformers and config.get("quantization_config"):
        hint = "Measure the source model instead."
        raise EvaluateError(
            _NOT_BY_TRANSFORMERS, f"transformers alone can't run {served.name}, which is quantized", hint=hint
        )
    found = _served(model, quantization(config), spec, workspace)
    if not against_transformers:
        return found
    workspace.report("generating with transformers alone")
    weights = transformers_baseline.Weights(served.checkpoint, model.dtype, model.random_weights)
    return found.model_copy(update={"plain": transformers_baseline.measure(workspace, weights, spec)})


def _served(model: BenchModel, quantized: str, spec: PerformanceSpec, workspace: Workspace) -> Benched:
    served = model.served
    with serving(served, workspace) as server:
        workspace.report(f"vLLM {server.version} is up after {server.start_seconds:.0f} s")
        endpoint = Endpoint(server.base_url, server.model, chat=False)
        if not model.random_weights:
            first_questions.measure(endpoint)
        with memory.watch(server.pid, interval=5.0) as peak:
            session = Session(endpoint=endpoint, workspace=workspace, tokenizer=served.checkpoint)
            speed = latency.measure(session, spec)
            loads = tuple(load_tools.measure(session, tool, spec) for tool in model.also)
        held = footprint.read(
            workspace.log.read_text(errors="replace"),
            memory.scrape(server.base_url),
            resident_bytes=peak.bytes,
            max_model_len=client.max_model_len(server.base_url, server.model),
        )
        return Benched(
            model=server.model,
            quantization=quantized,
            random_weights=model.random_weights,
            server=f"vllm {server.version}",
            hardware=model.hardware,
            start_seconds=server.start_seconds,
            footprint=held,
            latency=speed,
            loads=loads,
            drafting=_speculative(model, server, held, spec, workspace),
        )


def _speculative(
    model: BenchModel, server: Server, held: Footprint, spec: PerformanceSpec, workspace: Workspace
) -> Interleaved | None:
    """The server with its draft, and the same without it beside it, loaded in turn; None for a model without one."""
    if model.without_draft is None:
        return None
    if (why := interleave.too_large(held, workspace.free_accelerator)) is not None:
        return Interleaved(tool="none", levels=(), apart=why)
    name, checkpoint, log = model.served.name, model.served.checkpoint, workspace.log_of("without-draft")
    workspace.report(f"starting vLLM on {name} without its draft, to load both in turn")
    limits, progress = workspace.limits, workspace.progress
    with vllm_server.running(
        model.without_draft, model=name, log=log, timeout=limits.start, progress=progress
    ) as other:
        return interleave.measure(
            workspace,
            InterleavedSpec(spec.load, 2 * spec.load.repeats, spec.seed),
            reference=Target(other.base_url, other.model, checkpoint),
            subject=Target(server.base_url, server.model, checkpoint),
            prompts=model.prompts,
        )


def attach(session: Session, spec: PerformanceSpec, also: tuple[Tool, ...] = ()) -> Benched:
    """Put the load on a server that runs already; its machine is not known. Raises EvaluateError."""
    url, model = session.endpoint.base_url, session.endpoint.model
    session.workspace.report(f"asking {url}")
    speed = latency.measure(session, spec, own_server=False)
    loads = tuple(load_tools.measure(session, tool, spec) for tool in also)
    try:
        held: Footprint | None = footprint.read(
            "", memory.scrape(url), resident_bytes=None, max_model_len=session.context()
        )
    except EvaluateError:
        held = None  # not vLLM, or its metrics are not accessible
    config = session.tokenizer / "config.json"
    return Benched(
        model=model,
        quantization=quantization(config_of(config)) if config.is_file() else "unknown",
        random_weights=False,
        server=url,
        hardware=None,
        start_seconds=None,
        footprint=held,
        latency=speed,
        loads=loads,
    )


def config_of(path: Path) -> jsonfile.JsonObject:
    """A checkpoint's `config.json`, with the quantization config of a file of its own. Raises EvaluateError when it
    can't be read.
    """

    def beside(name: str) -> jsonfile.JsonObject:
        try:
            return jsonfile.read_object(path.parent / name)
        except (OSError, jsonfile.NotJson):
            return {}

    try:
        return checkpoint_files.with_sidecar(jsonfile.read_object(path), beside)
    except (OSError, jsonfile.NotJson) as error:
        raise EvaluateError(
            UNREADABLE_FILE, f"{path} can't be read: it {error}", hint="Fetch or quantize it again."
        ) from error


def quantization(config: jsonfile.JsonObject) -> str:
    """The quantization in a checkpoint's `config.json`: `bfloat16`, `awq 4 bits g128`, `W4A16 g64`, `FP8 W8A8`.

    `unknown` where it isn't recognized.
    """
    try:
        return _quantization(config)
    except (AttributeError, TypeError, ValueError):
        return "unknown"


def _quantization(config: jsonfile.JsonObject) -> str:
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
