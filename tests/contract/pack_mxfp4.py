"""Stores gpt-oss's experts as published: MXFP4, [experts, out, in / 32, 16] of bytes and an exponent per block.

PYTHON pack_mxfp4.py SOURCE TARGET
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

POSITIVE = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E2M1 = torch.cat([POSITIVE, -POSITIVE])


def pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks and scales of [experts, in, out]."""
    groups = weight.float().transpose(1, 2).unflatten(-1, (-1, 32))
    exponent = torch.ceil(torch.log2(groups.abs().amax(-1).clamp(min=1e-30) / 6)).clamp(-127, 127)
    scaled = groups / torch.exp2(exponent)[..., None]
    codes = (scaled[..., None] - E2M1).abs().argmin(-1).to(torch.uint8).unflatten(-1, (16, 2))
    return (codes[..., 0] | (codes[..., 1] << 4)).contiguous(), (exponent + 127).to(torch.uint8)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    shutil.copytree(source, target)
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")) and tensor.dim() == 3:
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = pack(tensor)
        else:
            tensors[name] = tensor
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": left}
    (target / "config.json").write_text(json.dumps(config))
