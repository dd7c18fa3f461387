"""Which quantized sources are unpacked, and what they are then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from quantize.checkpoint import unpack
from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.source import Source

UP = "model.layers.0.mlp.up_proj.weight"
BLOCKS: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def source(tensors: dict[str, tuple[str, tuple[int, ...]]], quantization: Any = BLOCKS) -> Source:
    made = tuple(Tensor(name, dtype, shape) for name, (dtype, shape) in tensors.items())
    config = {"model_type": "deepseek_v3", "quantization_config": quantization}
    return Source("m", "folder", "m", None, None, made, config)


PACKED: dict[str, tuple[str, tuple[int, ...]]] = {
    UP: ("F8_E4M3", (256, 128)), f"{UP}_scale_inv": ("F32", (2, 1)), "model.norm.weight": ("BF16", (128,))
}  # fmt: skip


def test_fp8_in_blocks_becomes_the_same_layers_in_bfloat16() -> None:
    found = unpack.unpacked(source(PACKED))
    assert found is not None
    assert {t.name: (t.dtype, t.shape) for t in found.tensors} == {
        UP: ("BF16", (256, 128)), "model.norm.weight": ("BF16", (128,))
    }  # fmt: skip
    assert (found.quantization, found.unpack) == (None, "FP8 in blocks of 128 x 128")
    assert found.parameters == 256 * 128 + 128


@pytest.mark.parametrize(
    "quantization",
    [None, {}, {"quant_method": "awq"}, {"quant_method": "fp8"}, {**BLOCKS, "weight_block_size": [128]},
     {**BLOCKS, "weight_block_size": [0, 128]}, {**BLOCKS, "weight_block_size": "128"}],
)  # fmt: skip
def test_another_method_is_not_unpacked(quantization: Any) -> None:
    assert unpack.unpacked(source(PACKED, quantization)) is None


def test_a_weight_without_its_scales_or_of_all_experts_is_not_unpacked() -> None:
    lost = {name: tensor for name, tensor in PACKED.items() if not name.endswith("_inv")}
    assert unpack.unpacked(source(lost)) is None
    fused = "model.layers.0.mlp.experts.gate_up_proj"
    assert (
        unpack.unpacked(source({fused: ("F8_E4M3", (4, 256, 128)), f"{fused}_scale_inv": ("F32", (4, 2, 1))})) is None
    )
    assert unpack.unpacked(replace(source(PACKED), tensors=())) is None
