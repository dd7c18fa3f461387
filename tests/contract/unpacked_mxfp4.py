"""Which experts of DENSE aren't, bit for bit, what transformers makes of the blocks in PACKED.

PYTHON unpacked_mxfp4.py PACKED DENSE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

if __name__ == "__main__":
    packed, dense = (load_file(Path(folder) / "model.safetensors") for folder in sys.argv[1:])
    names = [name.removesuffix("_blocks") for name in packed if name.endswith("_blocks")]
    differ = [
        name
        for name in names
        if not torch.equal(convert_moe_packed_tensors(packed[f"{name}_blocks"], packed[f"{name}_scales"]), dense[name])
    ]
    print(json.dumps({"compared": len(names), "differ": differ}))
