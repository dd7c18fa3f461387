"""Packs small weights into the formats that checkpoints have: AWQ (GEMM), GPTQ, and compressed-tensors' packed form.

Written after the formats' descriptions, for tests alone: every step is plain numpy, and `unpack_*` undoes it.

- AWQ GEMM: `qweight` int32 [in, out / 8]; eight output channels of one input channel in a word, in the order
  0 2 4 6 1 3 5 7 from the lowest bits. `qzeros` the same way, [groups, out / 8]. `scales` float16 [groups, out].
- GPTQ: `qweight` int32 [in / 8, out]; eight input channels of one output channel in a word, in order. `qzeros` int32
  [groups, out / 8], less one (the first format) or as they are (`gptq_v2`). `scales` [groups, out], `g_idx` int32 [in].
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Change = Callable[[dict[str, Array]], object]

# Bit positions 0, 4, 8... hold these output channels of eight.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_NAMES = {np.dtype(np.int32): "I32", np.dtype(np.float16): "F16", np.dtype(np.float32): "F32", np.dtype(np.int8): "I8",
          np.dtype(np.int64): "I64"}  # fmt: skip

WIDTH, INNER, GROUP, LAYERS = 64, 128, 32, 2
SHAPES = {"self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (WIDTH, WIDTH), "self_attn.v_proj": (WIDTH, WIDTH),
          "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH),
          "mlp.down_proj": (WIDTH, INNER)}  # fmt: skip
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32,
    "rope_theta": 500000.0, "rope_scaling": None, "torch_dtype": "float16", "tie_word_embeddings": False,
    "eos_token_id": 2, "transformers_version": "4.51.3",
}  # fmt: skip


def quantize(weight: Array, symmetric: bool) -> tuple[Array, Array, Array]:
    """Round to nearest in 4 bits: codes 0..15 [out, in], scales [out, groups], zero points [out, groups]."""
    grouped = weight.reshape(weight.shape[0], -1, GROUP)
    if symmetric:
        scale = np.maximum(np.abs(grouped).max(-1), 1e-5) / 7
        zero = np.full(scale.shape, 8)
    else:
        low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
        scale = np.maximum(high - low, 1e-5) / 15
        zero = np.clip(np.rint(-low / scale), 0, 15).astype(int)
    codes = np.clip(np.rint(grouped / scale[..., None]) + zero[..., None], 0, 15).astype(np.uint32)
    return codes.reshape(weight.shape), scale.astype(np.float16), zero.astype(np.uint32)


def words(values: Array, order: tuple[int, ...] = tuple(range(8))) -> Array:
    """Eight 4-bit values along the last axis in one int32: `order[i]` lies at bit 4 i."""
    eights = values.reshape(*values.shape[:-1], -1, 8).astype(np.uint32)
    packed = np.zeros(eights.shape[:-1], np.uint32)
    for place, which in enumerate(order):
        packed |= eights[..., which] << (4 * place)
    return packed.view(np.int32)


def awq(weight: Array) -> dict[str, Array]:
    """A linear layer [out, in] as AutoAWQ saves it."""
    codes, scale, zero = quantize(weight, symmetric=False)
    return {"qweight": words(codes.T.copy(), AWQ_ORDER), "qzeros": words(zero.T.copy(), AWQ_ORDER),
            "scales": scale.T.copy()}  # fmt: skip


def gptq(weight: Array, *, second_format: bool = False) -> dict[str, Array]:
    """A linear layer [out, in] as AutoGPTQ saves it: symmetric, channels in order."""
    codes, scale, zero = quantize(weight, symmetric=True)
    stored = zero.T if second_format else zero.T - 1
    return {"qweight": words(codes).T.copy(), "qzeros": words(stored.copy()), "scales": scale.T.copy(),
            "g_idx": (np.arange(weight.shape[1]) // GROUP).astype(np.int32)}  # fmt: skip


def save(path: Path, tensors: dict[str, Array]) -> None:
    """A safetensors file of numpy arrays."""
    header, data = {}, b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def weights() -> dict[str, Array]:
    """Every tensor of the model, float32, by its name without `.weight`."""
    random = np.random.default_rng(0)
    made: dict[str, Array] = {name: random.normal(size=(32, WIDTH)) for name in ("model.embed_tokens", "lm_head")}
    made["model.norm"] = np.ones(WIDTH)
    for number in range(LAYERS):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            made[f"model.layers.{number}.{norm}"] = np.exp(random.normal(size=WIDTH) / 4)
        for name, shape in SHAPES.items():
            made[f"model.layers.{number}.{name}"] = random.normal(size=shape) / 8
    return {name: weight.astype(np.float32) for name, weight in made.items()}


def tensors_of(method: str | None, change: Change | None = None) -> dict[str, Array]:
    """The model's tensors, after a `change`; its layers packed for `awq` or `gptq`, or as they are."""
    found = weights()
    if change is not None:
        change(found)
    pack = {"awq": awq, "gptq": gptq}.get(method or "")
    made: dict[str, Array] = {}
    for name, weight in found.items():
        parts = pack(weight) if pack and name.endswith("_proj") else {"weight": weight.astype(np.float16)}
        made.update({f"{name}.{part}": array for part, array in parts.items()})
    return made


QUANTIZATION: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm",
            "modules_to_not_convert": None},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False,
             "checkpoint_format": "gptq"},
}  # fmt: skip


def checkpoint(folder: Path, method: str | None, change: Change | None = None) -> Path:
    """A whole checkpoint folder in a method's format, or the model that it comes from (None)."""
    folder.mkdir(parents=True)
    save(folder / "model.safetensors", tensors_of(method, change))
    config = CONFIG | ({"quantization_config": QUANTIZATION[method]} if method else {})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizerFast"}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder
