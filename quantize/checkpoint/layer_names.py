"""Roles of layers by name: how servers fuse and shard them, and which ones quantization skips.

Names are those of transformers' Llama and similar models; fused layers are those of vLLM's `packed_modules_mapping`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

# Layers that a server fuses: they have to be quantized alike, or not at all.
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("q_a_proj", "kv_a_proj_with_mqa"), ("w1", "w3"),
         ("in_proj_qkv", "in_proj_z"), ("in_proj_b", "in_proj_a"))  # fmt: skip
# Sharded by input channels; those in COLUMN_PARALLEL by output channels.
ROW_PARALLEL = ("o_proj", "down_proj", "w2", "out_proj", "fc2")
COLUMN_PARALLEL = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "w1", "w3", "qkv_proj", "gate_up_proj", "fc1")
MLP = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
ROUTERS = ("gate", "router", "shared_expert_gate")

_VISION = re.compile(r"(^|\.)(visual|vision_tower|vision_model|vision_encoder|audio_tower|multi_modal_projector|"
                     r"mm_projector|image_newline)(\.|$)")  # fmt: skip
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
# DeepSeek and Qwen write `mtp.`, MiMo `mtp_layers.`, ERNIE `mtp_block.` and `mtp_linear_proj.`.
_MTP = re.compile(r"(?:^|\.)(?:(?:mtp|nextn)(?:_\w+)?|eagle)(?:\.|$)")
_MTP_LAYER = re.compile(r"(?:^|\.)(?:mtp|nextn)(?:_\w+)?\.(?:layers\.)?(\d+)\.")


def last(name: str) -> str:
    """The last part of a module's name."""
    return name.rpartition(".")[2]


def is_router(name: str) -> bool:
    """Whether it is a router of experts: small and sensitive to rounding."""
    return last(name) in ROUTERS


def is_expert(name: str) -> bool:
    """Whether it belongs to an expert."""
    return "experts" in name.split(".")


def is_vision(name: str) -> bool:
    """Whether it belongs to an image or audio encoder."""
    return _VISION.search(name) is not None


def is_mtp(name: str) -> bool:
    """Whether it is for multi-token prediction (speculative decoding)."""
    return _MTP.search(name) is not None


def mtp_number(name: str) -> int | None:
    """The number of the layer for multi-token prediction that it belongs to, where these are numbered on their own."""
    found = _MTP_LAYER.search(name)
    return int(found[1]) if found else None


def layer_number(name: str) -> int | None:
    """The index of a module's decoder layer."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def families(names: Iterable[str]) -> dict[tuple[str, tuple[str, ...]], list[str]]:
    """Fused layers: (stem, members) -> the existing names."""
    found: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for name in names:
        stem, _, own = name.rpartition(".")
        for members in FUSED:
            if own in members:
                found[stem, members].append(name)
    return found


def shard(name: str, shape: tuple[int, ...], gpus: int, config: Mapping[str, object]) -> tuple[int, int]:
    """[out, in] of a linear layer on one of `gpus` GPUs. Key and value heads are repeated if fewer than GPUs."""
    rows, columns = shape
    if gpus == 1:
        return rows, columns
    if last(name) in ROW_PARALLEL:
        return rows, columns // gpus
    if last(name) not in COLUMN_PARALLEL:
        return rows, columns
    heads = config.get("num_key_value_heads")
    if last(name) in ("k_proj", "v_proj") and isinstance(heads, int) and heads < gpus:
        return rows // heads, columns
    return rows // gpus, columns
