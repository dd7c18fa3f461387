"""Memory that an engine takes on a CPU: the parts of its peak, from shapes and from what was measured.

Each part is what the engine's source does and a profile of a run showed. docs/engines.md records how far their sum was
from what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from quantize import anatomy
from quantize.engine import Request
from quantize.kinds import Kind
from quantize.source import Source

LIBRARIES = 478_736_384
"""Measured: peak resident set of a process that imports llm-compressor 0.14.0.1 with torch 2.13 and does nothing."""
_LIBRARIES = {"gptqmodel": 568 * 2**20}
"""Measured for others: GPTQModel 7.6's worker before it loads a model."""

Part = tuple[str, int]


def parts(engine: str, request: Request, source: Source, artifact: int, rows: int, length: int) -> list[Part]:
    """What adds up, in bytes, largest first within what is always there. `artifact` is the bytes of its weights.

    `rows` of `length` tokens are calibrated on; none for rounding alone.
    """
    weights = source.parameters * 2
    layers, _ = source.split(request.ignore)
    found: list[Part] = [("weights in 16 bits", weights)]
    if rows and layers:
        # Each row's states before and after a block are kept, in 16 bits.
        found.append((f"states of {rows} x {length} tokens", 2 * 2 * rows * length * _width(source)))
        if request.method in ("gptq", "smoothquant", "awq+gptq"):
            found.append(("Hessians of one block", 4 * _largest_block(layers)))
        if engine == "llmcompressor":
            # The output layer runs on every row, and its result is turned into float32.
            found.append(("logits of the longest row", 4 * length * _vocabulary(source)))
    if engine == "llmcompressor":
        quantized = sum(len(kind.names) * math.prod(kind.shape) for kind in layers)
        if rows:
            found.append(("packed layers", artifact - 2 * (source.parameters - quantized)))
        found.append(("a copy of the artifact when it is written", artifact))
    found.append(("libraries (measured)", _LIBRARIES.get(engine, LIBRARIES)))
    return found


def _width(source: Source) -> int:
    """The hidden size: that of the config, else the input of the first attention layer."""
    size = _text(source).get("hidden_size")
    if isinstance(size, int):
        return size
    return min(kind.shape[1] for kind in source.kinds)


def _vocabulary(source: Source) -> int:
    """Rows of the output layer or of the embedding: that of the config, else the longest matrix's."""
    size = _text(source).get("vocab_size")
    if isinstance(size, int):
        return size
    return max(tensor.shape[0] for tensor in source.tensors if len(tensor.shape) == 2)


def _text(source: Source) -> dict[str, object]:
    inner = source.config.get("text_config")
    return inner if isinstance(inner, dict) else source.config


def _largest_block(layers: Sequence[Kind]) -> int:
    """Sum of the squared input channels of the layers of one block: what GPTQ's Hessians hold."""
    blocks: dict[int | None, int] = {}
    for kind in layers:
        for name in kind.names:
            number = anatomy.layer_number(name)
            blocks[number] = blocks.get(number, 0) + kind.shape[1] ** 2
    return max(blocks.values())
