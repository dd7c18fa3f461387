"""Estimated host memory of an engine: the parts of its peak, from shapes and measurements.

docs/benchmarks/engines.md compares the sum with measured peaks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from quantize.checkpoint import layer_names
from quantize.checkpoint.layer_groups import Kind
from quantize.checkpoint.model_config import ModelConfig
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Engine, Request

Part = tuple[str, int]

_TUNED = 37
"""Bytes a weight while a block is tuned, by what gram's tune.py holds: in 32 bits what is rounded and its offset with
the gradient, in a step the weight as it is multiplied with its gradient, and three temporaries of the largest input's
layers; in 16 bits the layer and what it reads with its gradient; in a byte the integers, the best ones, and what the
derivatives need.
"""


def parts(engine: Engine, request: Request, source: Source, artifact: int, rows: int, length: int) -> list[Part]:
    """The parts of the peak in bytes. `artifact` is the bytes of the artifact's weights.

    Calibration uses `rows` of `length` tokens; 0 for plain rounding. With a GPU this is the host's memory.
    """
    profile = engine.MEMORY
    layers, _ = source.split(request.ignore)
    gpu = request.target != "cpu"
    size = 4 if profile.float32 == "always" or (profile.float32 == "on a CPU" and not gpu) else 2
    found: list[Part] = [(f"weights in {8 * size} bits", size * source.parameters)]
    if rows and layers:
        # The states of each row before and after a block.
        kept = 3 if request.iterations else 2
        found.append((f"states of {rows} x {length} tokens", kept * size * rows * length * _width(source)))
        if request.iterations and not gpu:
            found.append(("tuning of one block", _TUNED * _largest_block_weights(layers)))
        if request.method in ("gptq", "smoothquant", "awq+gptq"):
            found.append(("Hessians of one block", 4 * _largest_block(layers, lambda channels: channels**2)))
        if profile.logits:
            found.append(("logits of the longest row", 4 * length * _vocabulary(source)))
        if engine.ROWS_TOGETHER and not gpu:
            # A GPU holds these, if there is one.
            found += _rows_together(layers, rows * length, size)
    if profile.packed:
        quantized = sum(len(kind.names) * math.prod(kind.shape) for kind in layers)
        if rows:
            found.append(("packed layers", artifact - 2 * (source.parameters - quantized)))
        found.append(("a copy of the artifact when it is written", artifact))
    found.append(("libraries (measured)", profile.libraries))
    return found


def layer_and_channels(request: Request, source: Source) -> tuple[int, int]:
    """(bytes of the largest decoder layer in 16 bits, hidden and intermediate size together)."""
    layers, _ = source.split(request.ignore)
    return 2 * _largest_block_weights(layers), _width(source) + max(kind.shape[1] for kind in layers)


def _rows_together(layers: Sequence[Kind], tokens: int, size: int) -> list[Part]:
    """Memory of one block if all rows go through it together, as in AutoAWQ 0.2.9 (awq/quantize/quantizer.py).

    Without experts, each of which gets a part of the tokens.
    """
    dense = [kind for kind in layers if not layer_names.is_expert(kind.name)]
    if not dense:
        return []
    inputs = _largest_block(dense, lambda channels: channels)
    # Clipping uses 512 tokens (all if fewer than 1,024) and multiplies each with every weight of a batch of rows.
    sampled = math.ceil(tokens / max(1, tokens // 512))
    clipped = max((256 if kind.shape[0] % 256 == 0 else 64) * kind.shape[1] for kind in dense)
    # The intermediate states of an MLP exist three times: both factors and their product.
    middle = 3 * tokens * max(kind.shape[1] for kind in dense)
    return [
        ("inputs of one block's layers", size * tokens * inputs),
        ("products of weights and inputs", size * max(sampled * clipped, middle)),
    ]


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


def _text(source: Source) -> ModelConfig:
    inner = source.config.get("text_config")
    return inner if isinstance(inner, dict) else source.config


def _largest_block_weights(layers: Sequence[Kind]) -> int:
    """Weights of the largest block."""
    blocks: dict[int | None, int] = {}
    for kind in layers:
        for name in kind.names:
            number = layer_names.layer_number(name)
            blocks[number] = blocks.get(number, 0) + math.prod(kind.shape)
    return max(blocks.values())


def _largest_block(layers: Sequence[Kind], held: Callable[[int], int]) -> int:
    """The largest sum of `held(input channels)` over the layers of one block."""
    blocks: dict[int | None, int] = {}
    for kind in layers:
        for name in kind.names:
            number = layer_names.layer_number(name)
            blocks[number] = blocks.get(number, 0) + held(kind.shape[1])
    return max(blocks.values())
