"""What can't work, known before it starts: from headers, the scheme and the hardware alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from quantize.engine import Complaint, Request
from quantize.headers import Tensor
from quantize.schemes import SCHEMES, TARGETS
from quantize.source import Source

# FP8_BLOCK's blocks (DeepSeek-V3's recipe, which compressed-tensors and vLLM follow).
_BLOCK = 128


def check(request: Request, source: Source, target: str, tensor_parallel: int) -> list[Complaint]:
    """Everything that would fail later. A source without headers (an unreachable hub) passes what can't be checked."""
    layers = [tensor for tensor in source.linears if not ignored(tensor, request.ignore)]
    return [*_kernel(request, target), *_something_left(source, layers), *_divides(request, layers, tensor_parallel)]


def ignored(tensor: Tensor, patterns: Sequence[str]) -> bool:
    """Whether a pattern leaves this layer alone: a name, the end of one, or `re:` and a regular expression."""
    name = tensor.name.removesuffix(".weight")
    return any(
        re.match(pattern[3:], name) is not None
        if pattern.startswith("re:")
        else name == pattern or name.endswith("." + pattern)
        for pattern in patterns
    )


def bad_patterns(patterns: Sequence[str]) -> list[Complaint]:
    """Regular expressions that don't compile."""
    complaints = []
    for i, pattern in enumerate(patterns):
        try:
            re.compile(pattern.removeprefix("re:"))
        except re.error as error:
            complaints.append(Complaint(f"{pattern}: not a regular expression: {error}", ("quantize", "ignore", i)))
    return complaints


def _kernel(request: Request, target: str) -> list[Complaint]:
    scheme = SCHEMES[request.scheme]
    if target in scheme.kernels:
        return []
    others = [other for other in TARGETS if other in scheme.kernels]
    why = scheme.missing.get(target, "vLLM has no kernel for it there")
    return [
        Complaint(
            f"{request.scheme} can't be served on {target}: {why}.",
            ("quantize", "scheme"),
            f"Kernels exist for: {', '.join(others)}.",
        )
    ]


def _something_left(source: Source, layers: list[Tensor]) -> list[Complaint]:
    if not source.tensors or layers:
        return []
    return [Complaint("leaves every layer alone: there is nothing to quantize", ("quantize", "ignore"))]


def _divides(request: Request, layers: list[Tensor], tensor_parallel: int) -> list[Complaint]:
    size = _BLOCK if request.scheme == "FP8_BLOCK" else request.group_size
    at = ("quantize", "scheme" if request.scheme == "FP8_BLOCK" else "group_size")
    if size is None:
        return []
    odd = [layer for layer in layers if layer.shape[1] % size]
    if odd:
        widths = sorted({layer.shape[1] for layer in layers})
        fitting = [
            str(candidate)
            for candidate in (256, 128, 96, 64, 48, 32, 16)
            if all(width % candidate == 0 for width in widths)
        ]
        hint = f"Every layer is divided by {', '.join(fitting)}." if fitting else "Put those layers on `ignore`."
        return [Complaint(f"{size} doesn't divide the {odd[0].shape[1]} input channels of {_some(odd)}.", at, hint)]
    # Row-parallel layers (o_proj, down_proj) are cut along their input channels.
    split = [
        layer
        for layer in layers
        if tensor_parallel > 1 and _row_parallel(layer) and layer.shape[1] % (size * tensor_parallel)
    ]
    if split:
        what = f"groups of {size} don't fit into the shards of {_some(split)} over {tensor_parallel} GPUs."
        return [Complaint(what, at, "Take a smaller group size or fewer GPUs.")]
    return []


def _row_parallel(layer: Tensor) -> bool:
    return layer.name.removesuffix(".weight").rpartition(".")[2] in ("o_proj", "down_proj", "w2")


def _some(layers: list[Tensor]) -> str:
    names = [layer.name.removesuffix(".weight") for layer in layers]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
