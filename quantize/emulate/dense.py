"""A quantized checkpoint with its weights unpacked to bfloat16, file by file, with numpy: all else is as it was.

`fetch` makes it of a source that is quantized already, and a twin is made of it. gpt-oss has experts in MXFP4:
`_blocks` [experts, out, in / 32, 16] and `_scales` [experts, out, in / 32], both U8, stand for [experts, in, out]
(transformers' `integrations/mxfp4.py`, `_convert_moe_packed_tensors`).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.core.jsonfile import JsonObject
from quantize.checkpoint.headers import Span, Tensor
from quantize.checkpoint.shards import INDEX
from quantize.checkpoint.source import Source
from quantize.doctor import decode, quantization_config, unpacked
from quantize.doctor.checkpoint import PARTS, Checkpoint, Layer
from quantize.doctor.quantization_config import Claim, Claims

MXFP4 = "mxfp4"
"""The `quant_method` of gpt-oss's experts."""
# Rows of a layer that are unpacked at a time.
_ROWS = 1024
# Blocks of all rows of an expert.
_GROUPS = 16
# The two values of a byte: the lower half comes first.
_PAIRS = np.stack([np.tile(decode.E2M1, 16), np.repeat(decode.E2M1, 16)], -1)
_BLOCKS, _SCALES = "_blocks", "_scales"
_CACHE_SCALES = ("k_scale", "v_scale", "q_scale", "output_scale")
_CONFIGS = ("config.json", INDEX, "quantize_config.json", "quant_config.json", "hf_quant_config.json")
# What no unquantized weight is stored in, and packed words by their names.
_PACKED_TYPES = ("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")
_PACKED_NAMES = ("_packed", "qweight", "qzeros")


class NotUnpacked(ValueError):
    """A checkpoint whose weights can't be unpacked. The message says which, and why."""


@dataclass(frozen=True)
class Part:
    """A tensor of the unpacked checkpoint: its type, its shape, and its bytes, piece by piece. `unpacked`: the source
    has a quantized one in its place.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[bytes]]
    size: int
    unpacked: bool = False


def of(source: Source) -> Source | None:
    """A source that is quantized already as it is after `fetch` has unpacked it, from headers alone; None for any
    other, and for one that can't be unpacked.
    """
    if source.quantization is None or not source.tensors:
        return None
    spans = {tensor.name: Span(tensor, 0, 0) for tensor in source.tensors}
    found = Checkpoint(source.path or Path(), dict(source.config), spans, {}, {}, frozenset(), 0)
    try:
        claims = claims_of(found)
        made = parts(found, claims, spans)
    except NotUnpacked:
        return None
    if not any(part.unpacked for part in made.values()):
        return None
    bits = sorted({claim.bits for _, claim in claims.groups}) or [4]
    return replace(
        source,
        tensors=tuple(Tensor(name, part.dtype, part.shape) for name, part in made.items()),
        config=_unquantized(source.config),
        unpack=f"{' and '.join(map(str, bits))} bits ({claims.method})",
    )


def claims_of(found: Checkpoint) -> Claims:
    """What the config says of its layers. Raises NotUnpacked for a format that isn't looked into."""
    claims = quantization_config.read(found)
    if claims is None:
        raise NotUnpacked("it is not quantized")
    if claims.unread and claims.method != MXFP4:
        raise NotUnpacked(claims.unread)
    return claims


def write(found: Checkpoint, claims: Claims, target: Path, report: Callable[[int, int], None]) -> int:
    """Write the unpacked checkpoint into the new folder `target`; files that hold no weights are linked. Returns the
    number of unpacked weights. Raises NotUnpacked.
    """
    target.mkdir(parents=True)
    files = sorted(set(found.holders.values()))
    names: dict[str, str] = {}
    count = 0
    for number, file in enumerate(files):
        report(number, len(files))
        made = parts(found, claims, [name for name in found.tensors if found.holders[name] == file])
        _write(target / file, made)
        names |= dict.fromkeys(made, file)
        count += sum(part.unpacked for part in made.values())
    for path in found.folder.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name not in _CONFIGS:
            (target / path.name).symlink_to(path.resolve())
    if found.index:
        (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (target / "config.json").write_text(json.dumps(_unquantized(found.config), indent=2))
    return count


def parts(found: Checkpoint, claims: Claims, names: Iterable[str]) -> dict[str, Part]:
    """What some tensors become, by name; scales and zero points become nothing. Raises NotUnpacked."""
    made = {}
    for name in names:
        tensor = found.tensors[name].tensor
        stem, _, last = name.rpartition(".")
        layer = found.layers.get(stem)
        if layer is not None and layer.quantized and last in PARTS:
            claim = claims.of(layer)
            if claim is None:
                raise NotUnpacked(f"{stem} is stored quantized, and the config says not")
            if claim.weight not in layer.parts:
                raise NotUnpacked(f"{stem} has no `{claim.weight}`")
            if name == layer.parts[claim.weight].name:
                made[f"{stem}.weight"] = _matrix(found, layer, claim)
        elif claims.method == MXFP4 and last.endswith((_BLOCKS, _SCALES)):
            if last.endswith(_BLOCKS):
                made[name.removesuffix(_BLOCKS)] = _experts(found, name)
        elif tensor.dtype in _PACKED_TYPES or name.endswith(_PACKED_NAMES):
            raise NotUnpacked(f"{name} is packed, and the config says nothing of it")
        elif last not in _CACHE_SCALES:
            made[name] = _copied(found, name)
    return made


def _matrix(found: Checkpoint, layer: Layer, claim: Claim) -> Part:
    rows, columns = _shape(found, layer, claim)

    def pieces() -> Iterator[bytes]:
        for start in range(0, rows, _ROWS):
            some = np.arange(start, min(start + _ROWS, rows))
            yield bfloat16(unpacked.weights(found, layer, claim, some, np.arange(columns))).tobytes()

    return Part("BF16", (rows, columns), pieces, rows * columns * 2, unpacked=True)


def _shape(found: Checkpoint, layer: Layer, claim: Claim) -> tuple[int, int]:
    """[out, in] before packing. Raises NotUnpacked for experts in one tensor."""
    packed = layer.parts[claim.weight]
    if len(packed.shape) != 2:
        raise NotUnpacked(f"{layer.name}: its tensors aren't matrices")
    # Of a source on a hub there are headers alone.
    told = found.shape_of(layer.name) if found.holders else None
    if told is not None:
        return told
    first, second = packed.shape
    each = 32 // claim.bits
    if claim.form == "awq":
        return second * each, first
    if claim.form == "gptq":
        return second, first * each
    return first, second * {"pack": each, "fp4": 2}.get(claim.form, 1)


def _experts(found: Checkpoint, name: str) -> Part:
    """Experts in one tensor, [experts, out, in / 32, 16] of bytes, as [experts, in, out]."""
    blocks = found.tensors[name].tensor
    scales = found.tensors.get(name.removesuffix(_BLOCKS) + _SCALES)
    if scales is None or len(blocks.shape) != 4 or scales.tensor.shape != blocks.shape[:3]:
        raise NotUnpacked(f"{name} has no scales of its shape")
    count, rows, groups, size = blocks.shape
    columns = groups * size * 2

    def pieces() -> Iterator[bytes]:
        for expert in range(count):
            for start in range(0, groups, _GROUPS):
                some = np.arange(start, min(start + _GROUPS, groups))
                one = (np.array([expert]), np.arange(rows), some)
                values = _PAIRS[found.integers_at(name, *one, np.arange(size))[0]].reshape(rows, len(some), -1)
                scale = found.floats_at(scales.tensor.name, *one, dtype="F8_E8M0")[0]
                yield bfloat16((values * scale[..., None]).reshape(rows, -1).T).tobytes()

    return Part("BF16", (count, columns, rows), pieces, count * rows * columns * 2, unpacked=True)


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to nearest, ties to even; the bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _copied(found: Checkpoint, name: str) -> Part:
    span = found.tensors[name]

    def pieces() -> Iterator[bytes]:
        with (found.folder / found.holders[name]).open("rb") as file:
            file.seek(span.start)
            left = span.size
            while left:
                piece = file.read(min(left, 1 << 24))
                left -= len(piece)
                yield piece

    return Part(span.tensor.dtype, span.tensor.shape, pieces, span.size)


def _write(path: Path, made: Mapping[str, Part]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, part in made.items():
        header[name] = {"dtype": part.dtype, "shape": part.shape, "data_offsets": [offset, offset + part.size]}
        offset += part.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for part in made.values():
            out.writelines(part.pieces())


def _unquantized(config: JsonObject) -> JsonObject:
    """The config without its quantization section, in bfloat16."""
    made = {key: value for key, value in config.items() if key != "quantization_config"}
    inner = made.get("text_config")
    if isinstance(inner, dict):
        made["text_config"] = {key: value for key, value in inner.items() if key != "quantization_config"}
    return {key: "bfloat16" if key in ("dtype", "torch_dtype") else value for key, value in made.items()}
