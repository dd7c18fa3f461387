"""What a layer is for, told from its name: how servers join and shard it, and which layers quantization leaves alone.

Names are those of transformers' Llama and its many relatives; vLLM's joins are its models' `packed_modules_mapping`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

# Layers that a server joins into one: all of them quantized alike, or none.
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("q_a_proj", "kv_a_proj_with_mqa"), ("w1", "w3"))
# Their input channels are cut over GPUs; of the others in COLUMN_PARALLEL the output channels are.
ROW_PARALLEL = ("o_proj", "down_proj", "w2", "out_proj", "fc2")
COLUMN_PARALLEL = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "w1", "w3", "qkv_proj", "gate_up_proj", "fc1")
MLP = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
ROUTERS = ("gate", "router", "shared_expert_gate")

_VISION = re.compile(r"(^|\.)(visual|vision_tower|vision_model|vision_encoder|audio_tower|multi_modal_projector|"
                     r"mm_projector|image_newline)(\.|$)")  # fmt: skip
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_MTP = re.compile(r"(^|\.)(mtp|nextn|nextn_predict_layers|eagle)(\.|$)")


def last(name: str) -> str:
    """The last part of a module's name."""
    return name.rpartition(".")[2]


def is_router(name: str) -> bool:
    """Whether it chooses experts: small, and ruined by rounding."""
    return last(name) in ROUTERS


def is_expert(name: str) -> bool:
    """Whether it is one of the layers that a router chooses among."""
    return "experts" in name.split(".")


def is_vision(name: str) -> bool:
    """Whether it belongs to the part that reads images or audio."""
    return _VISION.search(name) is not None


def is_mtp(name: str) -> bool:
    """Whether it predicts more than the next token (for speculative decoding)."""
    return _MTP.search(name) is not None


def layer_number(name: str) -> int | None:
    """The number of the decoder layer that a module is in."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def families(names: Iterable[str]) -> dict[tuple[str, tuple[str, ...]], list[str]]:
    """Layers that are joined with one another: (stem, members) to the names that are there."""
    found: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for name in names:
        stem, _, own = name.rpartition(".")
        for members in FUSED:
            if own in members:
                found[stem, members].append(name)
    return found


def shard(name: str, shape: tuple[int, ...], gpus: int, config: Mapping[str, object]) -> tuple[int, int]:
    """[out, in] of a linear layer on one GPU of `gpus`. Key and value heads fewer than GPUs are repeated."""
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
