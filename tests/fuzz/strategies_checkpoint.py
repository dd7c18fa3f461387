"""Checkpoint folders near valid ones: headers, configs, indexes and tokenizer files, each changed in a few places."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.mutations import damaged, documents
from tests.unit import packed

COMPRESSED: dict[str, Any] = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head", "re:.*gate$"],
    "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": None, "weights": {
        "num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}}},
}  # fmt: skip
FP8: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic",
                       "modules_to_not_convert": ["lm_head"]}  # fmt: skip
QUANTIZATION: dict[str, dict[str, Any]] = {**packed.QUANTIZATION, "compressed": COMPRESSED, "fp8": FP8}
CONFIG: dict[str, Any] = packed.CONFIG | {
    "head_dim": 32, "max_position_embeddings": 2048, "sliding_window": None, "is_encoder_decoder": False,
    "num_nextn_predict_layers": 0, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "text_config": {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 32},
    "dtype": "float16",
}  # fmt: skip
MOE: dict[str, Any] = packed.CONFIG | {"model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 32}
BESIDE: dict[str, Any] = {
    "generation_config.json": {"eos_token_id": [2, 3], "bos_token_id": 1},
    "tokenizer_config.json": {"tokenizer_class": "TokenizersBackend", "chat_template": "{{ messages }}",
                              "added_tokens_decoder": {"0": {"content": "<s>", "special": True}}},
    "preprocessor_config.json": {"size": {"height": 224}, "image_mean": [0.5, 0.5, 0.5]},
    "quantize_config.json": {"bits": 4, "group_size": 32, "sym": True, "desc_act": False},
}  # fmt: skip


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@st.composite
def safetensors(draw: st.DrawFn, header: Mapping[str, Any], data: bytes) -> bytes:
    """A file near the one with this header: the header changed as JSON, its length, or the whole as bytes."""
    about = {**header, "__metadata__": {"format": "pt"}} if draw(st.booleans()) else header
    text = draw(documents(about))
    length = len(text)
    if draw(st.integers(0, 5)) == 0:
        length = draw(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 2 * length), st.just(100_000_001)))
    whole = struct.pack("<Q", length) + text + data
    return draw(damaged(whole)) if draw(st.integers(0, 5)) == 0 else whole


@st.composite
def tensor_headers(draw: st.DrawFn, header: Mapping[str, Any], data: bytes) -> bytes:
    """A file whose tensors have other names, types and shapes, that a reader takes: places and sizes fit."""
    made, body = {}, b""
    for name, told in header.items():
        begin, end = told["data_offsets"]
        dtype, shape = told["dtype"], told["shape"]
        how = draw(st.sampled_from(["same"] * 12 + ["drop", "flat", "empty", "dtype", "swap", "name", "deep", "zero"]))
        raw = data[begin:end]
        if how == "drop":
            continue
        if how == "flat":
            shape = [_product(shape)]
        elif how == "swap":
            shape = shape[::-1]
        elif how == "deep":
            shape = [1, *shape, 1]
        elif how == "zero":
            raw = bytes(len(raw))
        elif how == "empty":
            shape, raw = draw(st.sampled_from([[0], [0, 7], [], [2**40, 0]])), b""
            raw = bytes({"I32": 4, "F16": 2, "F32": 4, "I64": 8, "I8": 1}[dtype]) if shape == [] else raw
        elif how == "dtype":
            dtype, shape = draw(st.sampled_from(["U8", "I8", "BOOL", "F8_E4M3", "F8_E8M0", "X9"])), [len(raw)]
        elif how == "name":
            name = draw(
                st.sampled_from(
                    [
                        "lm_head.weight",
                        f"{name}.weight",
                        ".weight",
                        "weight",
                        "",
                        f"model.{name}",
                        "model.layers.9" + "9" * 900 + ".mlp.up_proj.weight",
                        "a\n\u202eb.weight",
                    ]
                )
            )
        made[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(made).encode()
    return struct.pack("<Q", len(text)) + text + body


def _product(shape: list[int]) -> int:
    size = 1
    for each in shape:
        size *= each
    return size


def gguf(pairs: list[bytes], tensors: list[bytes], data: bytes) -> bytes:
    """A GGUF file of encoded pairs and tensors."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join([*pairs, *tensors])
    return head + bytes(-len(head) % 32) + data


def text(value: str) -> bytes:
    """A GGUF string."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


PAIRS = [
    text("general.architecture") + struct.pack("<I", 8) + text("llama"),
    text("general.alignment") + struct.pack("<II", 4, 32),
    text("general.license") + struct.pack("<I", 8) + text("mit"),
    text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc"),
    text("scores") + struct.pack("<IIQ", 9, 6, 2) + bytes(8),
    text("nested") + struct.pack("<IIQIQ", 9, 9, 1, 4, 1) + bytes(4),
]
TENSORS = [
    text("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 4, 1, 0),
    text("blk.0.ffn_up.weight") + struct.pack("<IQQIQ", 2, 64, 2, 8, 256),
    text("output_norm.weight") + struct.pack("<IQIQ", 1, 32, 0, 416),
]
_DATA = bytes(416 + 128)
# Where counts, lengths and types stand is what a mutation aims at.
_NUMBERS = st.sampled_from([0, 1, 2, 8, 9, 12, 13, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1])
_LONG = st.sampled_from([0, 1, 2**16, 2**31, 2**32, 2**40, 2**61, 2**63 - 1, 2**63, 2**64 - 1])


@st.composite
def ggufs(draw: st.DrawFn) -> bytes:
    """A file near a valid GGUF: numbers of 4 and 8 bytes overwritten wherever they are, parts twice or left out."""
    pairs, tensors = list(PAIRS), list(TENSORS)
    for parts_ in (pairs, tensors):
        if draw(st.integers(0, 5)) == 0:
            parts_ += draw(st.lists(st.sampled_from(parts_), max_size=3))
    whole = bytearray(gguf(pairs, tensors, _DATA))
    head = len(whole) - len(_DATA)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(4, head - 8))
        long = draw(st.booleans())
        whole[at : at + (8 if long else 4)] = (
            struct.pack("<Q", draw(_LONG)) if long else struct.pack("<I", draw(_NUMBERS))
        )
    return draw(damaged(bytes(whole))) if draw(st.integers(0, 3)) == 0 else bytes(whole)


@st.composite
def folders(draw: st.DrawFn, method: str | None, header: Mapping[str, Any], data: bytes) -> dict[str, bytes]:
    """The files of a checkpoint near one of a method's, or near one that isn't quantized."""
    config = draw(st.sampled_from([CONFIG, MOE, packed.CONFIG]))
    if method is not None:
        quantization = draw(st.sampled_from([QUANTIZATION[method], QUANTIZATION[method], COMPRESSED, FP8]))
        config = config | {"quantization_config": quantization}
    index = {"metadata": {"total_size": len(data)}, "weight_map": dict.fromkeys(header, "model.safetensors")}
    whole = struct.pack("<Q", len(t := json.dumps(header).encode())) + t + data
    files = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": whole,
        "tokenizer.json": b"{}",
        **{name: json.dumps(value).encode() for name, value in BESIDE.items() if draw(st.booleans())},
        **({"model.safetensors.index.json": json.dumps(index).encode()} if draw(st.booleans()) else {}),
    }
    if method is None:
        files.pop("quantize_config.json", None)
    names = st.sampled_from([*files, "config.json", "config.json", "model.safetensors", "model.safetensors"])
    for name in draw(st.lists(names, min_size=1, max_size=2, unique=True)):
        if name == "model.safetensors":
            files[name] = draw(st.one_of(safetensors(header, data), tensor_headers(header, data)))
        elif name == "tokenizer.json":
            files[name] = draw(st.binary(max_size=20))
        else:
            files[name] = draw(documents(json.loads(files[name])))
    return files


def written(folder: Path, files: Mapping[str, bytes]) -> Path:
    """The folder with these files and no others."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
