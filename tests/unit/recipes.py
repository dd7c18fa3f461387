"""A small valid recipe, and small checkpoints, for tests to damage."""

from __future__ import annotations

import json
import struct
from pathlib import Path

RECIPE = """\
name: tiny
model:
  source: model
calibration:
  source: texts.jsonl
  samples: 4
  max_length: 32
  min_length: 8
quantize:
  method: gptq
  scheme: W4A16
  group_size: 32
evaluate:
  tasks:
    - task: qpack_piqa
      samples: 10
  perplexity:
    source: held-out.jsonl
    windows: 2
    window_tokens: 16
gates:
  accuracy_drop: 0.1
serve:
  target: cpu
"""


def safetensors(path: Path, tensors: dict[str, tuple[int, ...]]) -> Path:
    """Write bfloat16 zeros of these shapes."""
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = 2
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    return path


def checkpoint(folder: Path, width: int = 64) -> Path:
    """A folder that looks like a checkpoint of a one-layer Llama."""
    folder.mkdir(parents=True)
    layer = "model.layers.0"
    safetensors(
        folder / "model.safetensors",
        {
            "model.embed_tokens.weight": (128, width),
            f"{layer}.self_attn.q_proj.weight": (width, width),
            f"{layer}.self_attn.o_proj.weight": (width, width),
            f"{layer}.mlp.up_proj.weight": (2 * width, width),
            f"{layer}.mlp.down_proj.weight": (width, 2 * width),
            "model.norm.weight": (width,),
        },
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def workspace(folder: Path, recipe: str = RECIPE) -> Path:
    """A folder with a recipe and everything that it names; returns the recipe's path."""
    checkpoint(folder / "model")
    rows = "".join(json.dumps({"text": f"row {i} " + "word " * 40}) + "\n" for i in range(8))
    (folder / "texts.jsonl").write_text(rows)
    (folder / "held-out.jsonl").write_text(rows.replace("row", "line"))
    path = folder / "tiny.yaml"
    path.write_text(recipe)
    return path
