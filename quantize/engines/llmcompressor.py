"""llm-compressor (vLLM project): GPTQ, AWQ, SmoothQuant and round to nearest, saved as compressed-tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qpack.core.records import Quantized
from qpack.runtime.specs import Spec
from quantize.checkpoint.headers import read_safetensors
from quantize.checkpoint.source import Source
from quantize.engines import adapters
from quantize.engines.protocol import Complaint, MemoryProfile, Request
from quantize.schemes.schemes import SCHEMES

_HERE = Path(__file__).parent

NAME = "llmcompressor"
ENVIRONMENT = Spec("llmcompressor", _HERE / "envs" / "llmcompressor", ("torch", "llmcompressor"))
WORKER = _HERE / "workers" / "llmcompressor_worker.py"
FORMATS: tuple[str, ...] = ("compressed-tensors",)
MIXED_PRECISION = False
ROWS_TOGETHER = False
RESUMABLE = False
LAYERWISE = False
MEMORY = MemoryProfile(logits=True, packed=True)
_OTHERS = {("gptq", "FP8_DYNAMIC"), ("smoothquant", "FP8_DYNAMIC")}
SUPPORTED = frozenset(
    (method, scheme.name)
    for scheme in SCHEMES.values()
    for method in scheme.methods
    if scheme.name not in ("W8A16_ASYM", "BF16") and (method, scheme.name) not in _OTHERS
)


def check(request: Request, source: Source) -> list[Complaint]:
    """It loads whatever transformers knows; a model that ships its own code needs the recipe's leave."""
    return adapters.own_code(request, source)


def job(request: Request, checkpoint: Path, tokens: Path | None) -> dict[str, Any]:
    """Everything that the worker needs. Without `tokens` it reads the safetensors tensor by tensor and loads no model:
    rounding to nearest needs no texts, unless activations or the KV cache get static scales.
    """
    schemes = (request.scheme, *(other.scheme for other in request.overrides))
    free = request.method == "rtn" and request.kv_cache is None and not any(SCHEMES[s].calibrated for s in schemes)
    tensors = [tensor for file in sorted(checkpoint.glob("*.safetensors")) for tensor in read_safetensors(file)[0]]
    return {
        "checkpoint": str(checkpoint),
        "linear_layers": sum(tensor.is_linear for tensor in tensors),
        "not_linear": [
            tensor.name.removesuffix(".weight")
            for tensor in tensors
            if tensor.name.endswith(".weight") and len(tensor.shape) == 2 and not tensor.is_linear
        ],
        "tokens": None if free or tokens is None else str(tokens),
        "overrides": [
            {"layers": other.layers, "scheme": other.scheme, "group_size": other.group_size}
            for other in request.overrides
        ],
        "kv_cache": request.kv_cache,
        "method": request.method,
        "scheme": request.scheme,
        "group_size": request.group_size,
        "ignore": list(request.ignore),
        "damping": request.damping,
        "trust_remote_code": request.trust_remote_code,
    }


def read(request: Request, out: Path, answer: dict[str, Any]) -> Quantized:
    """The artifact's record."""
    return adapters.record(NAME, request, out, answer)
