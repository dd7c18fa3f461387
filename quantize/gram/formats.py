"""The stored formats that servers read: tensors of a quantized layer, and the checkpoint's quantization config.

Sources: compressed-tensors 0.17-0.19 (pack-quantized, int-quantized, float-quantized, nvfp4-pack-quantized,
mxfp4-pack-quantized) as vLLM reads it; AutoAWQ
0.2.9's GEMM layout (`awq/modules/linear/gemm.py`); AutoGPTQ's layout of version 1, in which a stored zero point is
one less than the one that is meant (`auto_gptq/nn_modules/qlinear/`). Each writes tensors of one layer, and reads them
back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from .grid import E2M1, Grid
from .pack import pack, pack_zeros, unpack, unpack_zeros

# AutoAWQ's order of eight channels in a word, from the lowest bits.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_E8M0_BIAS = 127

QuantizationConfig: TypeAlias = dict[str, Any]
"""What config.json has under `quantization_config`, as JSON."""


@dataclass(frozen=True)
class Stored:
    """A layer's values [rows, columns] (`grid.storage`), scales and zero points [rows, groups] (float32).

    `common` [1] is what NVFP4's scales are multiplied by when they are stored, `inputs` [1] what its inputs'
    are, while serving.
    """

    values: Tensor
    scale: Tensor
    zero: Tensor
    common: Tensor | None = None
    inputs: Tensor | None = None

    def weights(self, grid: Grid) -> Tensor:
        """Dequantized weights, [rows, columns], float32."""
        grouped = grid.grouped(self.values.float())
        return grouped.sub_(self.zero.unsqueeze(-1)).mul_(self.scale.unsqueeze(-1)).flatten(1)


class Format(Protocol):
    """One of FORMATS."""

    portable: bool
    """Whether scales have to be exact in float16 and bfloat16 alike."""
    patterns: bool
    """Whether the names of ignored layers may be regular expressions (`re:...`)."""

    def tensors(self, layer: Stored, grid: Grid) -> dict[str, Tensor]:
        """The layer's tensors, by the last part of their names."""

    def read(self, tensors: Mapping[str, Tensor], grid: Grid) -> Stored:
        """The inverse of `tensors`."""

    def config(self, grids: Mapping[str, Grid], ignored: Sequence[str]) -> QuantizationConfig:
        """The `quantization_config`, from full names of quantized layers with their grids, and of the others."""


class CompressedTensors:
    """The format of vLLM's own project: integers in words where inputs stay in 16 bits, else one value a byte."""

    portable = False
    patterns = True

    def tensors(self, layer: Stored, grid: Grid) -> dict[str, Tensor]:
        """Packed along the row; zero points along the column."""
        if grid.fp4:
            return _fp4_tensors(layer)
        scale = {"weight_scale": layer.scale.to(grid.scale_dtype)}
        if not grid.packed:
            return {"weight": layer.values, **scale}
        shape = torch.tensor(layer.values.shape)
        found = {"weight_packed": pack(layer.values, grid.bits), **scale, "weight_shape": shape}
        if not grid.symmetric:
            found["weight_zero_point"] = pack_zeros(layer.zero.to(torch.int8), grid.bits)
        return found

    def read(self, tensors: Mapping[str, Tensor], grid: Grid) -> Stored:
        """Values, scales and zero points."""
        if grid.fp4:
            return _fp4_stored(tensors)
        scale = tensors["weight_scale"].float()
        if not grid.packed:
            return Stored(tensors["weight"], scale, torch.zeros_like(scale))
        rows, columns = tensors["weight_shape"].tolist()
        values = unpack(tensors["weight_packed"], grid.bits, columns)
        if grid.symmetric:
            return Stored(values, scale, torch.zeros_like(scale))
        return Stored(values, scale, unpack_zeros(tensors["weight_zero_point"], grid.bits, rows).float())

    def config(self, grids: Mapping[str, Grid], ignored: Sequence[str]) -> QuantizationConfig:
        """One group for all linear layers; with several grids one for each, by the names of its layers."""
        names: dict[Grid, list[str]] = {}
        for name, grid in grids.items():
            names.setdefault(grid, []).append(name)
        # In order of cost, so that equal choices give equal configs.
        order = sorted(names, key=lambda grid: (grid.bits, grid.group_size or 0, grid.symmetric, _compressor(grid)))
        groups = {
            f"group_{i}": _group(grid, ["Linear"] if len(order) == 1 else sorted(names[grid]))
            for i, grid in enumerate(order)
        }
        return {
            "quant_method": "compressed-tensors",
            "format": _compressor(order[0]) if len(set(map(_compressor, order))) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": list(ignored),
            "kv_cache_scheme": None,
        }


def _fp4_tensors(layer: Stored) -> dict[str, Tensor]:
    """Two values a byte, the first in the low half; block scales in E4M3 (with `weight_global_scale`) or E8M0."""
    codes = torch.zeros(2 * E2M1[-1] + 1, dtype=torch.uint8, device=layer.values.device)
    for code, value in enumerate(E2M1):
        codes[value + E2M1[-1]] = code
        if value:
            codes[E2M1[-1] - value] = code | 8
    pairs = codes[layer.values.long() + E2M1[-1]].unflatten(1, (-1, 2))
    found = {"weight_packed": pairs[..., 0] | (pairs[..., 1] << 4)}
    if layer.common is None:
        return {**found, "weight_scale": (torch.frexp(2 * layer.scale)[1] - 1 + _E8M0_BIAS).to(torch.uint8)}
    scale = (2 * layer.scale * layer.common).to(torch.float8_e4m3fn)
    found |= {"weight_scale": scale, "weight_global_scale": layer.common.clone()}
    return found if layer.inputs is None else {**found, "input_global_scale": layer.inputs.clone()}


def _fp4_stored(tensors: Mapping[str, Tensor]) -> Stored:
    packed, scale = tensors["weight_packed"], tensors["weight_scale"]
    codes = torch.stack((packed & 15, packed >> 4), -1).flatten(1).long()
    values = torch.tensor([*E2M1, *(-value for value in E2M1)], dtype=torch.int8, device=packed.device)[codes]
    common = tensors.get("weight_global_scale")
    if common is None:
        steps = torch.ldexp(torch.ones(scale.shape, device=scale.device), scale.int() - _E8M0_BIAS) / 2
    else:
        steps = scale.float() / common / 2
    return Stored(values, steps, torch.zeros_like(steps), common, tensors.get("input_global_scale"))


def _compressor(grid: Grid) -> str:
    if grid.fp4:
        return f"{grid.fp4}fp4-pack-quantized"
    if grid.packed:
        return "pack-quantized"
    return "float-quantized" if grid.float8 else "int-quantized"


def _group(grid: Grid, targets: list[str]) -> dict[str, Any]:
    kind = "float" if grid.float8 or grid.fp4 else "int"
    strategy = "tensor_group" if grid.fp4 == "nv" else "group" if grid.group_size else "channel"
    weights = {
        "num_bits": grid.bits,
        "type": kind,
        "symmetric": grid.symmetric,
        "strategy": strategy,
        "group_size": grid.group_size,
        "dynamic": False,
        "actorder": None,
        "observer": "minmax",
    }
    kind = "float" if grid.float8_inputs else "int"
    inputs = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True, "observer": None}
    if grid.fp4:
        weights["scale_dtype"] = weights["zp_dtype"] = "torch.float8_e4m3fn" if grid.fp4 == "nv" else "torch.uint8"
        # Of NVFP4's inputs the scale for whole tensors is stored, and those of blocks are found while serving.
        observed = {"dynamic": "local", "observer": "static_minmax"} if grid.fp4 == "nv" else {"dynamic": True}
        inputs = {**weights, "observer": None, **observed}
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": inputs if grid.activations else None,
        "output_activations": None,
        "format": _compressor(grid),
    }


class Awq:
    """AutoAWQ's GEMM layout: 4 bits with zero points, words along the output channels, channels in its own order."""

    portable = True
    patterns = False

    def tensors(self, layer: Stored, grid: Grid) -> dict[str, Tensor]:
        """Qweight [columns, rows / 8], qzeros [groups, rows / 8], scales [groups, rows]."""
        return {
            "qweight": pack(_reordered(layer.values.T, _AWQ_ORDER), grid.bits),
            "qzeros": pack(_reordered(layer.zero.T.to(torch.int8), _AWQ_ORDER), grid.bits),
            "scales": layer.scale.T.to(torch.float16).contiguous(),
        }

    def read(self, tensors: Mapping[str, Tensor], grid: Grid) -> Stored:
        """Values, scales and zero points."""
        scale = tensors["scales"].float().T
        back = tuple(_AWQ_ORDER.index(i) for i in range(8))
        values, zero = (
            _reordered(unpack(tensors[name], grid.bits, scale.shape[0]), back).T for name in ("qweight", "qzeros")
        )
        return Stored(values, scale, zero.float())

    def config(self, grids: Mapping[str, Grid], ignored: Sequence[str]) -> QuantizationConfig:
        """`modules_to_not_convert` holds parts of names: here whole ones."""
        (grid,) = set(grids.values())
        return {
            "quant_method": "awq",
            "bits": grid.bits,
            "group_size": grid.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": list(ignored) or None,
        }


def _reordered(values: Tensor, order: tuple[int, ...]) -> Tensor:
    """[any, channels] with the channels of each eight in another order."""
    return values.unflatten(1, (-1, len(order)))[:, :, list(order)].flatten(1)


class Gptq:
    """AutoGPTQ's layout, version 1: symmetric, words along the input channels, groups in their own order."""

    portable = True
    patterns = False

    def tensors(self, layer: Stored, grid: Grid) -> dict[str, Tensor]:
        """Qweight [columns / each, rows], qzeros [groups, rows / each], scales [groups, rows], g_idx [columns].

        `g_idx` says the plain order, which servers take without it; older readers ask for it.
        """
        columns = layer.values.shape[1]
        group = torch.arange(columns, dtype=torch.int32) // grid.width(columns)
        return {
            "qweight": pack(layer.values, grid.bits).T.contiguous(),
            "qzeros": pack(layer.zero.T.to(torch.int8) - 1, grid.bits),
            "scales": layer.scale.T.to(torch.float16).contiguous(),
            "g_idx": group,
        }

    def read(self, tensors: Mapping[str, Tensor], grid: Grid) -> Stored:
        """Values, scales and zero points."""
        scale = tensors["scales"].float().T
        columns = tensors["qweight"].shape[0] * 32 // grid.bits
        values = unpack(tensors["qweight"].T, grid.bits, columns)
        return Stored(values, scale, unpack(tensors["qzeros"], grid.bits, scale.shape[0]).T.float() + 1)

    def config(self, grids: Mapping[str, Grid], ignored: Sequence[str]) -> QuantizationConfig:
        """`dynamic` names with `-:` what isn't quantized (GPTQModel's way, which vLLM reads)."""
        (grid,) = set(grids.values())
        names = [name for name in ignored if not name.endswith("lm_head")]
        left: dict[str, dict[str, Any]] = {f"-:^{re.escape(name)}$": {} for name in names}
        return {
            "quant_method": "gptq",
            "bits": grid.bits,
            "group_size": grid.group_size or -1,
            "sym": True,
            "desc_act": False,
            "lm_head": False,
            "checkpoint_format": "gptq",
            **({"dynamic": left} if left else {}),
        }


FORMATS: dict[str, Format] = {"compressed-tensors": CompressedTensors(), "awq": Awq(), "gptq": Gptq()}
"""By the names that servers use."""
