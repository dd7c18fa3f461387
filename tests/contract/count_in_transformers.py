"""Counts a checkpoint's parameters, layers and experts in the model that transformers makes of it.

    PYTHON count_in_transformers.py FOLDER ...

Prints a JSON object: folder's name to its counts. A matrix is the weight of a linear layer, a router's, or one of an
expert; embeddings aren't.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import transformers
from torch import nn


def load(folder: Path) -> nn.Module:
    """The model, by the class that its config names."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(folder, dtype="auto", local_files_only=True)


def count(folder: Path) -> dict[str, Any]:
    """Its counts."""
    model = load(folder)
    text = model.config.get_text_config(decoder=True)
    stored = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values() if tensor.numel()}
    tables = {module.weight.data_ptr() for module in model.modules() if isinstance(module, nn.Embedding)}
    experts, expert_parameters = 0, 0
    matrices: dict[int, int] = {}
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 2 and own == "weight":
                matrices[parameter.data_ptr()] = 1
            fused = parameter.ndim == 3 and name.endswith(("experts", "input_linear", "output_linear"))
            if fused:
                both = "gate_up" in own or name.endswith("input_linear")
                matrices[parameter.data_ptr()] = parameter.shape[0] * (2 if both else 1)
                experts = max(experts, parameter.shape[0])
            if fused or (name.endswith("experts") and "shared" not in name):
                expert_parameters += math.prod(parameter.shape)
    keys = ("num_experts_per_tok", "top_k_experts", "moe_topk")
    active = next((found for key in keys if (found := getattr(text, key, None))), 0)
    idle = expert_parameters * (experts - active) // experts if experts else 0
    return {
        "parameters": sum(stored.values()),
        "active_parameters": sum(stored.values()) - idle,
        "layers": text.num_hidden_layers,
        "experts": experts,
        "active_experts": active if experts else 0,
        "matrices": sum(number for pointer, number in matrices.items() if pointer not in tables),
    }


if __name__ == "__main__":
    print(json.dumps({Path(folder).name: count(Path(folder)) for folder in sys.argv[1:]}))
