"""Stores a checkpoint's decoder layers as DeepSeek-V3's are: FP8 with a scale per block of 128 x 128.

PYTHON pack_fp8_blocks.py SOURCE TARGET
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

BLOCK = 128


def pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 [out, in], and what each block is multiplied by, [out / 128, in / 128]."""
    rows, columns = (-(-size // BLOCK) * BLOCK for size in weight.shape)
    padded = torch.zeros(rows, columns)
    padded[: weight.shape[0], : weight.shape[1]] = weight.float()
    blocks = padded.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK).transpose(1, 2)
    scale = blocks.abs().amax((2, 3)).clamp(min=1e-9) / 448
    packed = (blocks / scale[..., None, None]).transpose(1, 2).reshape(rows, columns).to(torch.float8_e4m3fn)
    return packed[: weight.shape[0], : weight.shape[1]].contiguous(), scale


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    shutil.copytree(source, target)
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        tensors[name] = tensor
        if name.endswith(("_proj.weight", "_with_mqa.weight")):
            tensors[name], tensors[f"{name}_scale_inv"] = pack(tensor)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "fmt": "e4m3"}
    (target / "config.json").write_text(json.dumps(config))
