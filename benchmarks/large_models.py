"""Checkpoints of real shapes that take no room: headers, and holes on the disk where the data would be.

Llama 3 70B as in its config.json; a mixture of experts of the form of Qwen3-235B-A22B, with 224 experts a layer for its
128: 405 billion parameters in 63,828 tensors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantize.checkpoint import from_config

LLAMA_70B: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
    "tie_word_embeddings": False,
}  # fmt: skip
MOE_400B: dict[str, Any] = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 4096, "head_dim": 128,
    "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_experts": 224, "num_experts_per_tok": 8,
    "num_hidden_layers": 94, "num_attention_heads": 64, "num_key_value_heads": 4, "vocab_size": 151936,
    "tie_word_embeddings": False,
}  # fmt: skip


def write(folder: Path, config: Mapping[str, Any], parts: int = 30) -> Path:
    """A checkpoint in bfloat16 whose data was never written. Returns the folder."""
    tensors = from_config.shapes(config) or {}
    folder.mkdir(parents=True)
    names = sorted(tensors)
    for number in range(parts):
        header, offset = {}, 0
        for name in names[number::parts]:
            size = 2
            for length in tensors[name]:
                size *= length
            header[f"{name}.weight"] = {
                "dtype": "BF16",
                "shape": tensors[name],
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(header).encode()
        with (folder / f"model-{number + 1:05}-of-{parts:05}.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + offset)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder
