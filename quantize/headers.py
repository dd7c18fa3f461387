"""Shapes and dtypes of a checkpoint from file headers alone: safetensors and GGUF, no tensor is read.

Sources: the safetensors format description (an 8-byte little-endian header length, a JSON header, the data), and the
GGUF specification, version 3 (ggml). A file that ends before its header says is a truncated download, and is named.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from qpack.errors import Problem

_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8,
         "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4}  # fmt: skip
# A header above this is not a header (the safetensors library has the same limit).
_MAX_HEADER = 100_000_000


class Tensor(NamedTuple):
    """One tensor: name, dtype as its file names it, and shape (for a linear layer: [out, in]). A tuple, because a
    large model has a hundred thousand of them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many values it holds."""
        return math.prod(self.shape)

    @property
    def is_linear(self) -> bool:
        """Whether it is the weight of a linear layer, as far as a name and two dimensions tell."""
        if len(self.shape) != 2 or not self.name.endswith(".weight"):
            return False
        last = self.name[:-7].rpartition(".")[2]
        return "embed" not in last and last not in ("wte", "wpe", "shared")


def read_safetensors(path: Path) -> tuple[tuple[Tensor, ...], list[Problem]]:
    """The tensors of one file, and what is wrong with it."""
    spans, problems = read_spans(path)
    return tuple(span.tensor for span in spans), problems


class Span(NamedTuple):
    """A tensor and the bytes of its file that hold it."""

    tensor: Tensor
    start: int
    size: int


def read_spans(path: Path) -> tuple[tuple[Span, ...], list[Problem]]:
    """The tensors of one file with the place of each, and what is wrong with the file."""
    size = path.stat().st_size
    again = "Download or copy it again."
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= _MAX_HEADER or 8 + length > size:
            return (), [Problem(f"is not a whole safetensors file ({size:,} bytes).", str(path), again)]
        try:
            header = json.loads(file.read(length))
            items = [
                (Tensor(name, t["dtype"], tuple(t["shape"])), *t["data_offsets"])
                for name, t in header.items()
                if name != "__metadata__"
            ]
        except (ValueError, KeyError, TypeError):
            return (), [Problem("has a safetensors header that can't be read.", str(path), again)]
    expected = 8 + length + max((end for _, _, end in items), default=0)
    if size != expected:
        cut = (
            f"is truncated: {size:,} bytes, and its header says {expected:,}."
            if size < expected
            else "has bytes after its data."
        )
        return (), [Problem(cut, str(path), again)]
    return tuple(Span(tensor, 8 + length + begin, end - begin) for tensor, begin, end in items), []


def bytes_of(tensor: Tensor) -> int:
    """Bytes of a safetensors tensor."""
    return tensor.elements * _BITS.get(tensor.dtype, 16) // 8


_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


# GGUF's names of a decoder's tensors, and what transformers calls them in Llama and its many relatives.
_TRANSFORMERS_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_OUTSIDE_LAYERS = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}


def transformers_name(name: str) -> str:
    """A GGUF tensor's name as transformers has it (`ignore` patterns match that); unknown ones stay as they are."""
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _TRANSFORMERS_NAMES:
        return f"model.layers.{parts[1]}.{_TRANSFORMERS_NAMES[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in _OUTSIDE_LAYERS:
        return f"{_OUTSIDE_LAYERS[parts[0]]}.{parts[1]}"
    return name


def read_gguf(path: Path) -> tuple[tuple[Tensor, ...], dict[str, object], list[Problem]]:
    """The tensors of a GGUF file (transformers' names, shapes as [out, in]) and its scalar and string metadata."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                return (), {}, [Problem("is not a GGUF file.", str(path))]
            version, tensors, pairs = _unpack(file, "IQQ")
            if version not in (2, 3):
                return (), {}, [Problem(f"is GGUF version {version}; 2 and 3 are read.", str(path))]
            metadata = {key: value for key, value in (_pair(file) for _ in range(pairs)) if value is not None}
            return tuple(_gguf_tensors(file, tensors)), metadata, []
    except (struct.error, UnicodeDecodeError, MemoryError):
        return (), {}, [Problem("is truncated or damaged.", str(path), "Download or copy it again.")]


def _unpack(file: BinaryIO, form: str) -> tuple[int, ...]:
    size = struct.calcsize("<" + form)
    return struct.unpack("<" + form, file.read(size))


def _text(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    if length > _MAX_HEADER:
        raise struct.error
    return file.read(length).decode()


def _pair(file: BinaryIO) -> tuple[str, object]:
    key = _text(file)
    (kind,) = _unpack(file, "I")
    return key, _value(file, kind)


def _value(file: BinaryIO, kind: int) -> object:
    """A scalar or a string; arrays (the vocabulary) are stepped over and give None."""
    if kind in _SCALARS:
        return _unpack(file, _SCALARS[kind])[0]
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        raise struct.error
    inner, count = _unpack(file, "IQ")
    if inner in _SCALARS:
        file.seek(count * struct.calcsize("<" + _SCALARS[inner]), 1)
    else:
        for _ in range(count):
            (length,) = _unpack(file, "Q")
            file.seek(length, 1)
    return None


def _gguf_tensors(file: BinaryIO, count: int) -> Iterator[Tensor]:
    for _ in range(count):
        name = _text(file)
        (dimensions,) = _unpack(file, "I")
        shape = _unpack(file, "Q" * dimensions)
        kind, _offset = _unpack(file, "IQ")
        # GGUF lists the contiguous dimension first.
        yield Tensor(transformers_name(name), str(kind), tuple(reversed(shape)))
