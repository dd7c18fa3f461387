"""Shapes and dtypes of a checkpoint from safetensors headers. Reads no tensor.

Sources: the safetensors format description (an 8-byte little-endian header length, a JSON header, the data) and what
its library refuses (`safetensors/src/tensor.rs`). Every length, count and offset is checked against the file's size
before it is used. `quantize.checkpoint.gguf` reads GGUF.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

from qpack.core import jsonfile
from qpack.core.hashing import open_regular
from qpack.core.jsonfile import NotJson
from qpack.core.problems import UNREADABLE_FILE, Code, Location, Problem

TRUNCATED = Code("truncated", "A weights file is incomplete, or isn't safetensors or GGUF.")

_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
         "U16": 16, "U8": 8, "BOOL": 8, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
         "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}  # fmt: skip
# The limit of the safetensors library.
MAX_HEADER = 100_000_000
# Tables that are looked up, besides those with `embed` in their name.
_TABLES = ("wte", "wpe", "shared", "relative_attention_bias", "bias_values")
MAX_NAME = 1024
"""Characters of a tensor's name."""
# The limits of numpy and torch, and of file sizes.
_MAX_RANK, _MAX_DIMENSION = 64, 2**63 - 1
# The most faults in a message about one file.
_TOLD = 5


class Tensor(NamedTuple):
    """One tensor: name, dtype as its file names it, and shape (for a linear layer: [out, in]). A tuple, because
    large models have a hundred thousand of them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def is_linear(self) -> bool:
        """Whether it is the weight of a linear layer, by name and number of dimensions."""
        if len(self.shape) != 2 or not self.name.endswith(".weight"):
            return False
        last = self.name[:-7].rpartition(".")[2]
        table = "embed" in last and not last.endswith(("_out", "_proj", "projection"))
        return not table and last not in _TABLES


def read_safetensors(path: Path) -> tuple[tuple[Tensor, ...], list[Problem]]:
    """The tensors of one file, and its problems."""
    spans, problems = read_spans(path)
    return tuple(span.tensor for span in spans), problems


class Span(NamedTuple):
    """A tensor and its position in the file, in bytes."""

    tensor: Tensor
    start: int
    size: int


def read_spans(path: Path) -> tuple[tuple[Span, ...], list[Problem]]:
    """The tensors of one file with their positions, and its problems. Leaves out invalid tensors."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= MAX_HEADER or 8 + length > size:
                return (), [truncated(path, f"is not a whole safetensors file ({size:,} bytes).")]
            data = file.read(length)
        return _spans(_header(data), path, 8 + length, size)
    except OSError as error:
        return (), [Problem(UNREADABLE_FILE, f"can't be read: {error.strerror or error}.", Location(str(path)))]
    except NotJson as error:
        return (), [truncated(path, f"has a safetensors header that can't be read: it {error}.")]


def truncated(path: Path, what: str) -> Problem:
    """The problem of a weights file that isn't whole."""
    return Problem(TRUNCATED, what, Location(str(path)), "Download or copy it again.")


def _header(data: bytes) -> dict[str, Any]:
    header = jsonfile.loads(data)
    if not isinstance(header, dict):
        raise NotJson("is not a JSON object")
    about = header.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise NotJson("has a `__metadata__` of other things than texts")
    return header


def _spans(header: dict[str, Any], path: Path, data: int, size: int) -> tuple[tuple[Span, ...], list[Problem]]:
    """Tensors by the header, whose data begins at byte `data` of `size`."""
    spans: list[Span] = []
    faults: list[str] = []
    places: list[tuple[int, int]] = []
    for name, entry in header.items():
        offsets = _whole_numbers(entry.get("data_offsets")) if isinstance(entry, dict) else None
        if offsets is None or len(offsets) != 2 or not offsets[0] <= offsets[1]:
            raise NotJson(f"gives no place for {_short(name)}")
        places.append((offsets[0], offsets[1]))
        tensor = checked(name, entry.get("dtype"), entry.get("shape"), offsets[1] - offsets[0])
        if isinstance(tensor, str):
            faults.append(tensor)
        else:
            spans.append(Span(tensor, data + offsets[0], offsets[1] - offsets[0]))
    expected = data + max((end for _, end in places), default=0)
    if size != expected:
        cut = (
            f"is truncated: {size:,} bytes, and its header says {expected:,}."
            if size < expected
            else "has bytes after its data."
        )
        return (), [truncated(path, cut)]
    places.sort()
    if any(one[1] != two[0] for one, two in zip([(0, 0), *places], places, strict=False)):
        return (), [truncated(path, "has tensors that overlap, or bytes that no tensor has.")]
    more = [f"and {len(faults) - _TOLD} more tensors are wrong"] if len(faults) > _TOLD else []
    return tuple(spans), [truncated(path, fault) for fault in [*faults[:_TOLD], *more]]


def checked(name: object, dtype: object, shape: object, size: int | None) -> Tensor | str:
    """A tensor of a header, or why it is invalid. `size`: its bytes, None if unknown."""
    if not isinstance(name, str) or len(name) > MAX_NAME:
        return f"{_short(name)}: its name has more than {MAX_NAME} characters"
    if not isinstance(dtype, str) or len(dtype) > 32:
        return f"{_short(name)}: its type is no name"
    sizes = _whole_numbers(shape)
    if sizes is None or len(sizes) > _MAX_RANK:
        return f"{_short(name)}: its shape is no list of sizes"
    tensor = Tensor(name, dtype, sizes)
    if size is not None:
        bits = _BITS.get(dtype)
        right = tensor.elements * bits == size * 8 if bits else tensor.elements <= size * 8
        if not right:
            return f"{_short(name)}: has {size:,} bytes, which isn't its shape {list(sizes)}"
    return tensor


def _whole_numbers(found: object) -> tuple[int, ...] | None:
    if not isinstance(found, list | tuple):
        return None
    right = all(type(number) is int and 0 <= number <= _MAX_DIMENSION for number in found)
    return tuple(found) if right else None


def _short(name: object) -> str:
    return f"{name[:200]}..." if isinstance(name, str) and len(name) > 200 else str(name)


def bytes_of(tensor: Tensor) -> int:
    """Bytes of a safetensors tensor."""
    return tensor.elements * _BITS.get(tensor.dtype, 16) // 8
