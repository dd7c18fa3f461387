"""Tensors and metadata of a GGUF file, from its header. Reads no tensor.

Source: the GGUF specification, version 3 (ggml), and what ggml's reader refuses (`ggml/src/gguf.cpp`). Every count and
length is checked against the rest of the file before it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qpack.core.hashing import open_regular
from qpack.core.problems import UNREADABLE_FILE, Location, Problem
from quantize.checkpoint.headers import MAX_HEADER, MAX_NAME, Tensor, truncated

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Nested arrays are not used in practice; the specification has no limit.
_MAX_NESTING = 4
_MAX_KEY, _MAX_DIMENSIONS = 65_535, 4
# The smallest sizes of a pair (empty key, kind, one byte) and a tensor (empty name, no dimension).
_PAIR, _TENSOR = 13, 24
_ALIGNMENT = 32
# Values of a block and its bytes, by the number of the type (ggml.h, ggml-common.h).
_BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
           10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66),
           17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136),
           24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54),
           35: (256, 66), 39: (32, 17)}  # fmt: skip


# GGUF's names of a decoder's tensors, and those of transformers for Llama and similar models.
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

# Keys of the metadata below the architecture's name, and those of transformers' config.
_CONFIG = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
}


def config(metadata: Mapping[str, object]) -> dict[str, object]:
    """What the metadata has of transformers' config: the model's type, and sizes that are one number for all layers."""
    kind = metadata.get("general.architecture")
    sizes = {name: metadata.get(f"{kind}.{key}") for key, name in _CONFIG.items()}
    return {"model_type": kind, **{name: size for name, size in sizes.items() if type(size) is int and size > 0}}


def transformers_name(name: str) -> str:
    """The transformers name of a GGUF tensor, which `ignore` patterns match; unknown names are unchanged."""
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _TRANSFORMERS_NAMES:
        return f"model.layers.{parts[1]}.{_TRANSFORMERS_NAMES[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in _OUTSIDE_LAYERS:
        return f"{_OUTSIDE_LAYERS[parts[0]]}.{parts[1]}"
    return name


class _Damaged(Exception):
    """The fault, as the end of a sentence about the file."""


@dataclass
class _Header:
    """Reads a file's header sequentially. Raises _Damaged before reading beyond the file or the limit."""

    file: BinaryIO
    size: int
    at: int = 0

    def take(self, size: int) -> bytes:
        self._has(size)
        self.at += size
        return self.file.read(size)

    def skip(self, size: int) -> None:
        self._has(size)
        self.at += size
        self.file.seek(size, 1)

    def _has(self, size: int) -> None:
        if size > self.size - self.at:
            raise _Damaged("is truncated or damaged.")
        if self.at + size > MAX_HEADER:
            raise _Damaged(f"has a header of more than {MAX_HEADER:,} bytes.")

    def numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def count(self, least: int) -> int:
        """The number of following items, each of at least `least` bytes."""
        (count,) = self.numbers("Q")
        if count * least > self.size - self.at:
            raise _Damaged("is truncated or damaged.")
        return count

    def text(self, limit: int = MAX_HEADER) -> str:
        (length,) = self.numbers("Q")
        if length > limit:
            raise _Damaged("is truncated or damaged.")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise _Damaged("has a name or a text that isn't UTF-8.") from None


def read_gguf(path: Path) -> tuple[tuple[Tensor, ...], dict[str, object], list[Problem]]:
    """The tensors of a GGUF file (transformers' names, shapes as [out, in]) and its scalar and string metadata."""
    try:
        with open_regular(path) as file:
            header = _Header(file, file.seek(0, 2))
            file.seek(0)
            if header.size < 4 or header.take(4) != b"GGUF":
                raise _Damaged("is not a GGUF file.")
            (version,) = header.numbers("I")
            if version not in (2, 3):
                raise _Damaged(f"is GGUF version {version}; 2 and 3 are read.")
            tensors, pairs = header.count(_TENSOR), header.count(_PAIR)
            metadata = _metadata(header, pairs)
            return tuple(_tensors(header, tensors, metadata.get("general.alignment", _ALIGNMENT))), metadata, []
    except _Damaged as damage:
        return (), {}, [truncated(path, str(damage))]
    except OSError as error:
        return (), {}, [Problem(UNREADABLE_FILE, f"can't be read: {error.strerror or error}.", Location(str(path)))]


def _metadata(header: _Header, pairs: int) -> dict[str, object]:
    found: dict[str, object] = {}
    seen: set[str] = set()
    for _ in range(pairs):
        key = header.text(_MAX_KEY)
        if key in seen:
            raise _Damaged(f"has a duplicate key ({key[:64]!r}).")
        seen.add(key)
        value = _value(header, header.numbers("I")[0])
        if value is not None:
            found[key] = value
    return found


def _value(header: _Header, kind: int) -> object:
    """A scalar or a string; arrays (the vocabulary) are skipped and give None."""
    if kind in _SCALARS:
        return header.numbers(_SCALARS[kind])[0]
    if kind == _STRING:
        return header.text()
    _step_over(header, kind, 0)
    return None


def _step_over(header: _Header, kind: int, nesting: int) -> None:
    if kind in _SCALARS:
        header.skip(struct.calcsize("<" + _SCALARS[kind]))
    elif kind == _STRING:
        (length,) = header.numbers("Q")
        header.skip(length)
    elif kind == _ARRAY and nesting < _MAX_NESTING:
        (inner,) = header.numbers("I")
        if inner in _SCALARS:
            size = struct.calcsize("<" + _SCALARS[inner])
            header.skip(header.count(size) * size)
        else:
            # An empty string has the 8 bytes of its length, an empty array 12.
            for _ in range(header.count(8)):
                _step_over(header, inner, nesting + 1)
    else:
        raise _Damaged("is truncated or damaged.")


def _tensors(header: _Header, count: int, alignment: object) -> list[Tensor]:
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise _Damaged("has an alignment that is no power of two.")
    found = [_tensor(header) for _ in range(count)]
    data = -(-header.at // alignment) * alignment
    names: set[str] = set()
    for tensor, offset in found:
        kind = int(tensor.dtype)
        block, size = _BLOCKS.get(kind, (16, 1))
        last = tensor.shape[-1] if tensor.shape else 1
        if kind in _BLOCKS and last % block:
            raise _Damaged(f"has a tensor whose rows aren't whole blocks of its type ({tensor.name[:200]}).")
        if offset % alignment or data + offset + -(-tensor.elements // block) * size > header.size:
            raise _Damaged(f"is truncated, or a tensor lies outside of it ({tensor.name[:200]}).")
        if tensor.name in names:
            raise _Damaged(f"has a duplicate tensor ({tensor.name[:200]}).")
        names.add(tensor.name)
    return [tensor for tensor, _ in found]


def _tensor(header: _Header) -> tuple[Tensor, int]:
    name = header.text(MAX_NAME)
    (dimensions,) = header.numbers("I")
    if dimensions > _MAX_DIMENSIONS:
        raise _Damaged(f"has a tensor of {dimensions} dimensions.")
    # GGUF lists the contiguous dimension first.
    shape = tuple(reversed(header.numbers("Q" * dimensions)))
    kind, offset = header.numbers("IQ")
    if any(size >= 2**63 for size in shape):
        raise _Damaged("is truncated or damaged.")
    return Tensor(transformers_name(name), str(kind), shape), offset
