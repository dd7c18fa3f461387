"""llm-compressor (vLLM project): GPTQ, AWQ, SmoothQuant and round to nearest, saved as compressed-tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qpack.envs import Spec
from qpack.results import Quantized
from quantize import adapters
from quantize.engine import Complaint, Request
from quantize.schemes import SCHEMES
from quantize.source import Source

_HERE = Path(__file__).parent

NAME = "llmcompressor"
ENVIRONMENT = Spec("llmcompressor", _HERE / "envs" / "llmcompressor", ("torch", "llmcompressor"))
WORKER = _HERE / "workers" / "llmcompressor_worker.py"
FORMATS: tuple[str, ...] = ("compressed-tensors",)
MIXED = False
_OTHERS = {("gptq", "FP8_DYNAMIC"), ("smoothquant", "FP8_DYNAMIC")}
WAYS = frozenset(
    (method, scheme.name)
    for scheme in SCHEMES.values()
    for method in scheme.methods
    if method != "awq+gptq" and scheme.name != "W8A16_ASYM" and (method, scheme.name) not in _OTHERS
)


def check(request: Request, source: Source) -> list[Complaint]:
    """It loads whatever transformers knows; a model that ships its own code needs the recipe's leave."""
    return adapters.own_code(request, source)


def job(request: Request, checkpoint: Path, tokens: Path | None) -> dict[str, Any]:
    """Everything that the worker needs."""
    return {
        "checkpoint": str(checkpoint),
        "tokens": str(tokens) if tokens else None,
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
