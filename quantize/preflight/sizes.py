"""Expected size of an artifact."""

from __future__ import annotations

import math

from quantize.checkpoint.headers import bytes_of
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Request
from quantize.preflight import overrides, stored
from quantize.schemes.schemes import SCHEMES, UNCHANGED


def weights_bytes(source: Source, asked: Request) -> int:
    """Bytes of the artifact's weights in its files."""
    if asked.method in UNCHANGED:
        return source.parameters * 2 if source.kind == "gguf" else sum(map(bytes_of, source.tensors))
    return served_bytes(source, asked)


def unpacked_bytes(source: Source, asked: Request) -> int:
    """Bytes of the artifact's weights in 16 bits, as a twin has them: of a source that is quantized, its unpacked
    layers and all else.
    """
    parts = stored.own(asked, source)
    if not parts:
        return source.parameters * 2
    names = {name for part in parts for kind in part.layers for name in kind.names}
    others = sum(bytes_of(tensor) for tensor in source.tensors if tensor.name.rpartition(".")[0] not in names)
    return others + 2 * sum(math.prod(kind.shape) * len(kind.names) for part in parts for kind in part.layers)


def served_bytes(source: Source, asked: Request) -> int:
    """Bytes of the artifact's weights in a server's memory, from shapes, bits and scales.

    Unquantized tensors count 2 bytes a value; a group's scale 2 bytes, and half a byte for a 4-bit zero point (gptq
    stores one for symmetric schemes too); a block's scale one byte, and 2 bytes of FP8_BLOCK. A budget is taken as
    spent: the artifact is that large at most.
    """
    if asked.method == "none":
        return weights_bytes(source, asked)
    taken, _ = source.split(asked.ignore)
    total = source.parameters * 2.0
    if asked.budget is not None:
        # Of what is read per token experts count less than they take: all may get the most that a choice has.
        most = max((SCHEMES[name].weight_bits + 1.0 for one in asked.choices for name in one.schemes), default=16.0)
        bits = min(16.0, most) if asked.per_token else asked.budget
        spent = sum(len(kind.names) * math.prod(kind.shape) for kind in taken)
        return round(total + spent * (bits / 8 - 2))
    for kind, request in ((kind, part.request) for part in overrides.by_scheme(asked, taken) for kind in part.layers):
        scheme, values = SCHEMES[request.scheme], math.prod(kind.shape)
        rows, columns = map(float, kind.shape)
        groups = columns / request.group_size if request.group_size else 1.0
        stored = rows * columns * (scheme.stored_bits or scheme.weight_bits) / 8
        if scheme.block is not None:
            groups = columns / scheme.block
            rows = rows / scheme.block if request.scheme == "FP8_BLOCK" else rows
        zeros = request.scheme.endswith("ASYM") or request.format == "gptq"
        scale = 0 if scheme.weight_bits == 16 else 2 + (scheme.weight_bits / 8 if zeros else 0)
        if scheme.block is not None and request.scheme != "FP8_BLOCK":
            scale = 1
        total += len(kind.names) * (stored + rows * groups * scale - 2 * values)
    return round(total)
