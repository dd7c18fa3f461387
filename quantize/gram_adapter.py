"""gram, qpack's own engine: AWQ scales and GPTQ rounding from Gram matrices, saved as compressed-tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qpack.envs import Spec
from qpack.results import Quantized
from quantize import adapters
from quantize.engine import Complaint, Request
from quantize.gram.architectures import ARCHITECTURES
from quantize.preflight import ignored
from quantize.schemes import SCHEMES
from quantize.source import Source

_HERE = Path(__file__).parent

NAME = "gram"
FORMAT = "compressed-tensors"
ENVIRONMENT = Spec("gram", _HERE / "envs" / "gram", ("torch", "transformers", "safetensors"))
WORKER = _HERE / "gram"
WAYS = frozenset((method, name) for name in ("W4A16", "W4A16_ASYM", "W8A16") for method in SCHEMES[name].methods)


def check(request: Request, source: Source) -> list[Complaint]:
    """It knows architectures by a table, and quantizes decoder layers alone."""
    complaints = adapters.one_scheme("gram", request)
    kind = source.config.get("model_type")
    if kind is not None and kind not in ARCHITECTURES:
        what = f"gram doesn't know the architecture '{kind}'; it knows {', '.join(ARCHITECTURES)}."
        complaints.append(Complaint(what, ("quantize", "engine"), "Take `engine: llmcompressor`."))
    outside = [tensor for tensor in source.linears if ".layers." not in tensor.name]
    left = [tensor.name.removesuffix(".weight") for tensor in outside if not ignored(tensor, request.ignore)]
    if left:
        what = f"gram quantizes decoder layers alone, and {left[0]} isn't in one."
        complaints.append(Complaint(what, ("quantize", "ignore"), f"Put {left[0]} on `ignore`."))
    return complaints


def job(request: Request, checkpoint: Path, tokens: Path | None) -> dict[str, Any]:
    """Everything that the worker needs."""
    return {
        "checkpoint": str(checkpoint),
        "tokens": str(tokens) if tokens else None,
        "method": request.method,
        "bits": SCHEMES[request.scheme].weight_bits,
        "symmetric": not request.scheme.endswith("_ASYM"),
        "group_size": request.group_size,
        "ignore": list(request.ignore),
        "damping": request.damping,
    }


def read(request: Request, out: Path, answer: dict[str, Any]) -> Quantized:
    """The artifact's record."""
    return adapters.record(NAME, request, out, answer)
