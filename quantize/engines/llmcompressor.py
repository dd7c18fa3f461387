"""llm-compressor (vLLM project): GPTQ, AWQ, SmoothQuant and round to nearest, saved as compressed-tensors."""

from __future__ import annotations

from pathlib import Path

from qpack.core.problems import Location, Problem
from qpack.core.records import Quantized
from qpack.runtime.specs import Spec
from quantize.checkpoint import layer_roles
from quantize.checkpoint.headers import read_safetensors
from quantize.checkpoint.source import Source
from quantize.engines import adapters
from quantize.engines.adapters import UNKNOWN_MODEL
from quantize.engines.protocol import MemoryProfile, Paths, Request
from quantize.engines.workers.engine_answer import Answer
from quantize.engines.workers.llmcompressor_job import Job, Override
from quantize.schemes.schemes import SCHEMES, UNCHANGED

_HERE = Path(__file__).parent

NAME = "llmcompressor"
ENVIRONMENT = Spec("llmcompressor", _HERE / "envs" / "llmcompressor", ("torch", "llmcompressor"))
WORKER = _HERE / "workers" / "llmcompressor_worker.py"
# transformers' release in its locks.
_TRANSFORMERS = (5, 17)
FORMATS: tuple[str, ...] = ("compressed-tensors",)
MIXED_PRECISION = False
TUNES = False
ROWS_TOGETHER = False
RESUMABLE = False
LAYERWISE = False
KEEPS_UNLOADED = True
MEMORY = MemoryProfile(logits=True, packed=True)
_OTHERS = {("gptq", "FP8_DYNAMIC"), ("smoothquant", "FP8_DYNAMIC")}
SUPPORTED = frozenset(
    (method, scheme.name)
    for scheme in SCHEMES.values()
    for method in scheme.methods
    if scheme.name != "W8A16_ASYM" and method not in (*UNCHANGED, "autoround") and (method, scheme.name) not in _OTHERS
)


def check(request: Request, source: Source) -> list[Problem]:
    """It loads every model that transformers knows; one that ships its own code needs the recipe's permission."""
    problems = [*adapters.own_code(request, source), *adapters.fused_biases(request, source)]
    if source.config.get("is_encoder_decoder") and request.method != "rtn":
        what = f"{request.method} needs calibration rows, which '{source.config.get('model_type')}' reads in two parts."
        hint = "Use `method: rtn`, which needs none."
        problems.append(Problem(UNKNOWN_MODEL, what, Location(key=("quantize", "method")), hint))
    if request.method != "rtn":
        problems += adapters.new_layer_types("llm-compressor", _TRANSFORMERS, source)
    return problems


def job(request: Request, paths: Paths) -> Job:
    """The worker's job. Without rows it reads the safetensors tensor by tensor and loads no model: rounding to nearest
    needs no texts, unless activations or the KV cache get static scales.
    """
    schemes = (request.scheme, *(other.scheme for other in request.overrides))
    free = request.method == "rtn" and request.kv_cache is None and not any(SCHEMES[s].calibrated for s in schemes)
    files = sorted(paths.checkpoint.glob("*.safetensors"))
    tensors = [tensor for file in files for tensor in read_safetensors(file)[0]]
    config = adapters.read_object(paths.checkpoint / "config.json")
    linears = layer_roles.linears(tensors, config)
    return Job(
        checkpoint=str(paths.checkpoint),
        linear_layers=len(linears),
        # Only the model's own code says how experts lie in one tensor.
        fused=not {tensor.name for tensor in linears} <= {tensor.name for tensor in tensors},
        not_linear=tuple(
            tensor.name.removesuffix(".weight")
            for tensor in tensors
            if tensor.name.endswith(".weight") and not tensor.is_linear
        ),
        tokens=None if free or paths.tokens is None else str(paths.tokens),
        overrides=tuple(Override(other.layers, other.scheme, other.group_size) for other in request.overrides),
        kv_cache=request.kv_cache,
        method=request.method,
        scheme=request.scheme,
        group_size=request.group_size,
        ignore=request.ignore,
        damping=request.damping,
        trust_remote_code=request.trust_remote_code,
    )


def read(request: Request, out: Path, answer: Answer) -> Quantized:
    """The artifact's record."""
    return adapters.record(NAME, request, out, answer)
