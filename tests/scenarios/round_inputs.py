"""Inputs rounded by qpack's plugin for vLLM, and by others. Runs in llm-compressor's environment or in vLLM's.

`python round_inputs.py PLUGIN ct|vllm`: prints JSON, for each way of rounding the share of values that differ from
compressed-tensors' or vLLM's own, and the largest change that rounding made at all.
"""

import json
import sys

import torch

# INT8 is left out: there compressed-tensors divides by 127.5, and vLLM's kernels by 127.
PRESETS = {"nvfp4": "NVFP4", "fp8_block": "FP8_BLOCK", "fp8_token": "FP8_DYNAMIC"}
VLLM = ("nvfp4", "mxfp8", "int8_zero_point")


def by_compressed_tensors(way, x, shared):
    """As compressed-tensors rounds the inputs of its preset schemes."""
    from compressed_tensors.quantization import preset_name_to_scheme
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils.helpers import compute_dynamic_scales_and_zp

    args = preset_name_to_scheme(PRESETS[way], []).input_activations
    scale = torch.tensor([1 / shared]) if way == "nvfp4" else None
    found, zero = compute_dynamic_scales_and_zp(x, args, None, global_scale=scale)
    return fake_quantize(x, found, zero, args, global_scale=scale)


def by_vllm(way, x, shared):
    """As vLLM's references do."""
    if way == "int8_zero_point":
        # The kernel of 4-bit weights on CPUs, with the identity for weights: one in groups of 32, stored with 8 added.
        size = x.shape[-1]
        codes = torch.eye(size, dtype=torch.uint8) + 8
        packed = codes[:, 1::2] << 4 | codes[:, ::2]
        ones = torch.ones(size, size // 32, dtype=torch.bfloat16)
        weight = torch.ops.aten._dyn_quant_pack_4bit_weight(packed, ones, None, 32, size, size)
        return torch.ops.aten._dyn_quant_matmul_4bit(x, weight, 32, size, size)
    from vllm.model_executor.layers.quantization.utils import mxfp8_utils, nvfp4_emulation_utils

    if way == "nvfp4":
        return nvfp4_emulation_utils.ref_nvfp4_quant_dequant(x, torch.tensor([1 / shared]), 16)
    values, scales = mxfp8_utils._mxfp8_e4m3_quantize_torch(x)
    return values.float() * torch.exp2(scales.float() - 127).repeat_interleave(32, -1)


def main(plugin, other):
    """Compare."""
    sys.path.insert(0, plugin)
    import qpack_emulation

    torch.manual_seed(0)
    x = torch.randn(64, 256) * torch.exp(2 * torch.randn(64, 1))
    x[3] = 0
    shared = float(x.abs().max()) / 448 / 6
    rows = x.abs().amax(-1, keepdim=True).clamp(min=1e-9)
    told = {}
    for way in PRESETS if other == "ct" else VLLM:
        ours = qpack_emulation.WAYS[way](x, shared)
        # A token's scale is of the last of three axes.
        theirs = by_compressed_tensors(way, x[None], shared)[0] if other == "ct" else by_vllm(way, x, shared)
        off = ((ours - theirs).abs() / rows > 1e-6).float().mean().item()
        told[way] = [off, ((ours - x).abs() / rows).max().item()]
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
