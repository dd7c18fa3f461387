"""Unpacks a compressed-tensors checkpoint of 4-bit weights to float32; runs where torch and safetensors are.

vLLM's CPU build multiplies 4-bit weights with AVX-512 alone. Unpacked, the same values can be served on any CPU.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def nibbles(packed, dim):
    """The eight 4-bit values of each int32 along `dim`, the lowest bits first, as 0 to 15."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    values = (packed.unsqueeze(-1) >> shifts) & 15
    return values.flatten(-2) if dim == 1 else values.transpose(1, 2).flatten(0, 1)


def weight(packed, scale, zero):
    """The weight in float32: every value less its group's zero point (8 where there is none), times its scale."""
    values = nibbles(packed, 1).float()
    width = values.shape[1] // scale.shape[1]
    offset = nibbles(zero, 0).float().repeat_interleave(width, 1) if zero is not None else 8.0
    return (values - offset) * scale.float().repeat_interleave(width, 1)


def unpack(source, target):
    """Write `source` to the new folder `target` in float32; a checkpoint that isn't packed only changes its type."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    held = {}
    for file in sorted(Path(source).glob("*.safetensors")):
        held |= load_file(file)
    written = {}
    for name, tensor in held.items():
        stem, _, kind = name.rpartition(".weight_")
        if kind == "packed":
            zero = held.get(f"{stem}.weight_zero_point")
            written[f"{stem}.weight"] = weight(tensor, held[f"{stem}.weight_scale"], zero)
        elif kind not in ("scale", "zero_point", "shape"):
            written[name] = tensor.float()
    save_file({name: tensor.contiguous() for name, tensor in written.items()}, Path(target) / "model.safetensors")
    path = Path(target) / "config.json"
    config = json.loads(path.read_text())
    config.pop("quantization_config", None)
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2))
