"""Weights of artifacts by compressed-tensors' own arithmetic. Runs in llm-compressor's environment.

`python decompress_tiny.py SOURCE OUT ARTIFACT...` writes OUT/NAME.safetensors for each artifact (NAME is its folder's):
for each quantized layer `LAYER.unpacked`, `LAYER.source`, and `LAYER.rounded`: the source's with the stored scales.
"""

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors.mx_utils import decompress_mx_scale
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.lifecycle.forward import dequantize, fake_quantize
from safetensors.torch import load_file, save_file


def main(source, out, *artifacts):
    """Unpack each artifact."""
    before = load_file(f"{source}/model.safetensors")
    for artifact in artifacts:
        folder = Path(artifact)
        config = json.loads((folder / "checkpoint" / "config.json").read_text())["quantization_config"]
        (scheme,) = QuantizationConfig.model_validate(config).config_groups.values()
        tensors = load_file(folder / "checkpoint" / "model.safetensors")
        found = {}
        for name in [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]:
            values, scale, zero, shared = parts(name, tensors, scheme.weights)
            options = {"args": scheme.weights, "global_scale": shared}
            found[f"{name}.unpacked"] = dequantize(values, scale, zero, dtype=torch.float32, **options)
            weight = before[f"{name}.weight"].float()
            found[f"{name}.source"], found[f"{name}.rounded"] = weight, fake_quantize(weight, scale, zero, **options)
        save_file({name: t.float().contiguous() for name, t in found.items()}, f"{out}/{folder.name}.safetensors")


def parts(name, tensors, args):
    """Values, scales, zero points and the global scale, in 32 bits."""
    scale, zero = tensors[f"{name}.weight_scale"], tensors.get(f"{name}.weight_zero_point")
    scale = decompress_mx_scale(scale).float() if scale.dtype == torch.uint8 else scale.float()
    packed = tensors.get(f"{name}.weight_packed")
    if packed is None:
        values = tensors[f"{name}.weight"].float()
    elif packed.dtype == torch.uint8:
        values = unpack_fp4_from_uint8(packed, packed.shape[0], packed.shape[1] * 2, dtype=torch.float32)
    else:
        shape = torch.Size(tensors[f"{name}.weight_shape"].tolist())
        values = unpack_from_int32(packed, args.num_bits, shape).float()
        if zero is not None:
            zero = unpack_from_int32(zero, args.num_bits, (shape[0], scale.shape[1]), packed_dim=0)
    return values, scale, None if zero is None else zero.float(), tensors.get(f"{name}.weight_global_scale")


if __name__ == "__main__":
    main(*sys.argv[1:])
