"""A checkpoint that any vLLM serves in an artifact's place: its unpacked weights in bfloat16, all else as it is.

Kernels for weights alone multiply the same unpacked weights, so the twin's answers are the artifact's but for the order
of sums. Where a scheme quantizes activations too, vLLM loads a plugin from `plugin/`, which rounds what goes into each
layer and back (`workers/plugin/qpack_emulation.py`).
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.core.errors import EvaluateError
from qpack.core.frozen import Frozen
from qpack.core.problems import Code
from quantize.checkpoint import layer_names
from quantize.checkpoint.shards import INDEX
from quantize.doctor import checkpoint as checkpoints
from quantize.doctor import decode, quantization_config, unpacked
from quantize.doctor.checkpoint import PARTS, Checkpoint, Layer
from quantize.doctor.quantization_config import CT_GLOBAL, Claim, Claims

_NO_TWIN = Code("no-twin", "A layer or a model can't be emulated.")

_HERE = Path(__file__).parent
PLUGIN = _HERE / "workers" / "plugin" / "qpack_emulation.py"
# Rows of a layer that are unpacked at a time.
_ROWS = 1024
_CACHE_SCALES = ("k_scale", "v_scale", "q_scale", "output_scale")
_CONFIGS = ("config.json", INDEX, "quantize_config.json", "quant_config.json", "hf_quant_config.json")


class Twin(Frozen):
    """What was unpacked: layers, and those of them whose activations are rounded too."""

    layers: int
    rounded_activations: int


@dataclass(frozen=True)
class _Part:
    """A tensor of the twin's: its type, its shape, and its bytes, piece by piece."""

    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[bytes]]
    size: int


def make(artifact: Path, out: Path, report: Callable[[int, int], None] = lambda *_: None) -> Twin:
    """Write `out/checkpoint`, and `out/plugin` where activations are rounded. Raises EvaluateError for a format that
    isn't looked into.
    """
    found, _ = checkpoints.read(artifact, sample=0)
    claims = quantization_config.read(found)
    if claims is None or claims.unread:
        raise EvaluateError(
            _NO_TWIN, f"{artifact.name} can't be emulated: {claims.unread if claims else 'it is not quantized'}"
        )
    target = out / "checkpoint"
    target.mkdir(parents=True)
    quantized = {name: layer for name, layer in found.layers.items() if layer.quantized}
    files = sorted(set(found.holders.values()))
    for number, file in enumerate(files):
        report(number, len(files))
        _write(target / file, _parts(found, claims, file))
    for path in artifact.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name not in _CONFIGS:
            (target / path.name).symlink_to(path.resolve())
    _index(found, target, files)
    _config(found, target)
    rounded = _activations(found, claims, quantized)
    if rounded:
        _plugin(out / "plugin", rounded)
    return Twin(layers=len(quantized), rounded_activations=sum(len(names) for names in rounded.values()))


def variables(out: Path) -> dict[str, str]:
    """Variables of a server that serves the twin in `out`; none where only weights are quantized."""
    plugin = out / "plugin"
    if not plugin.is_dir():
        return {}
    return {"PYTHONPATH": str(plugin), "QPACK_EMULATION": str(plugin / "activations.json")}


def _parts(found: Checkpoint, claims: Claims, file: str) -> dict[str, _Part]:
    """The tensors of one file."""
    parts = {}
    for name, span in found.tensors.items():
        if found.holders[name] != file:
            continue
        stem, _, last = name.rpartition(".")
        layer = found.layers.get(stem)
        if layer is not None and layer.quantized and last in PARTS:
            claim = claims.of(layer)
            if claim is None:
                raise EvaluateError(
                    _NO_TWIN, f"{stem} can't be emulated: it is stored quantized, and the config says not"
                )
            if name == layer.parts[claim.weight].name:
                parts[f"{stem}.weight"] = _unpacked(found, layer, claim)
        elif last not in _CACHE_SCALES:
            parts[name] = _Part(span.tensor.dtype, span.tensor.shape, _copied(found, name), span.size)
    return parts


def _unpacked(found: Checkpoint, layer: Layer, claim: Claim) -> _Part:
    rows, columns = _shape(found, layer, claim)

    def pieces() -> Iterator[bytes]:
        for start in range(0, rows, _ROWS):
            some = np.arange(start, min(start + _ROWS, rows))
            yield bfloat16(unpacked.weights(found, layer, claim, some, np.arange(columns))).tobytes()

    return _Part("BF16", (rows, columns), pieces, rows * columns * 2)


def _shape(found: Checkpoint, layer: Layer, claim: Claim) -> tuple[int, int]:
    """[out, in] before packing. Raises EvaluateError for experts in one tensor."""
    packed = layer.parts[claim.weight]
    if len(packed.shape) != 2:
        raise EvaluateError(_NO_TWIN, f"{layer.name} can't be emulated: its tensors aren't matrices")
    told = found.shape_of(layer.name)
    if told is not None:
        return told
    first, second = packed.shape
    if claim.form == "awq":
        return second * 32 // claim.bits, first
    if claim.form == "gptq":
        return second, first * 32 // claim.bits
    return first, second * (2 if claim.form == "fp4" else 1)


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to nearest, ties to even; the bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _copied(found: Checkpoint, name: str) -> Callable[[], Iterator[bytes]]:
    span, path = found.tensors[name], found.folder / found.holders[name]

    def pieces() -> Iterator[bytes]:
        with path.open("rb") as file:
            file.seek(span.start)
            left = span.size
            while left:
                piece = file.read(min(left, 1 << 24))
                left -= len(piece)
                yield piece

    return pieces


def _write(path: Path, parts: dict[str, _Part]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, part in parts.items():
        header[name] = {"dtype": part.dtype, "shape": part.shape, "data_offsets": [offset, offset + part.size]}
        offset += part.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for part in parts.values():
            out.writelines(part.pieces())


def _index(found: Checkpoint, target: Path, files: list[str]) -> None:
    if not found.index:
        return
    names: dict[str, str] = {}
    for file in files:
        with (target / file).open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            names.update(dict.fromkeys((n for n in json.loads(opened.read(length)) if n != "__metadata__"), file))
    (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))


def _config(found: Checkpoint, target: Path) -> None:
    """The config without its quantization section, in bfloat16."""
    config = {key: value for key, value in found.config.items() if key != "quantization_config"}
    inner = config.get("text_config")
    if isinstance(inner, dict):
        config["text_config"] = {key: value for key, value in inner.items() if key != "quantization_config"}
    for key in ("dtype", "torch_dtype"):
        if key in config:
            config[key] = "bfloat16"
    (target / "config.json").write_text(json.dumps(config, indent=2))


def _activations(found: Checkpoint, claims: Claims, layers: dict[str, Layer]) -> dict[str, dict[str, float | None]]:
    """Layers by how their inputs are rounded, each with the stored scale if there is one."""
    rounded: dict[str, dict[str, float | None]] = {}
    for name, layer in layers.items():
        claim = claims.of(layer)
        if claim is None or not claim.inputs:
            continue
        if layer_names.is_expert(name):
            raise EvaluateError(_NO_TWIN, f"{name} can't be emulated: inputs of experts are rounded inside of them")
        stored = layer.parts.get(claim.input_scale)
        scale = None
        if stored is not None and decode.is_float(stored.dtype) and stored.elements:
            scale = float(found.floats(stored.name)[0])
            # One convention for both: values are divided by it.
            scale = 1 / scale if claim.global_scale == CT_GLOBAL and scale else scale
        rounded.setdefault(claim.inputs, {})[name] = scale
    return rounded


def _plugin(folder: Path, rounded: dict[str, dict[str, float | None]]) -> None:
    """A distribution that vLLM finds by its entry point on PYTHONPATH."""
    told = folder / "qpack_emulation-1.dist-info"
    told.mkdir(parents=True)
    shutil.copyfile(PLUGIN, folder / PLUGIN.name)
    (folder / "activations.json").write_text(json.dumps(rounded))
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: qpack-emulation\nVersion: 1\n")
    (told / "entry_points.txt").write_text("[vllm.general_plugins]\nqpack_emulation = qpack_emulation:register\n")
