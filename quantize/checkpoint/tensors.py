"""Comparison of two checkpoints by tensor: which differ, in how many elements, and by how much.

Reads the safetensors files in pieces, with constant memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qpack.core.errors import QuantizeError
from qpack.core.frozen import Frozen
from qpack.core.problems import Code
from quantize.checkpoint.headers import read_spans

_UNREADABLE_TENSORS = Code("unreadable-tensors", "The tensors of a checkpoint can't be read.")

_PIECE_BYTES = 2**24
# Compared as unsigned integers of their width; types that numpy knows also as numbers.
_WIDTHS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_NUMBERS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "F64": np.dtype("<f8")}


class Difference(Frozen):
    """A tensor that differs in `elements` of `of` elements, compared bitwise.

    `relative` is the Frobenius norm of the difference over that of the first; None for codes (packed integers, 8-bit
    floats), and if one side lacks the tensor or the shapes differ (`of` is 0 then).
    """

    name: str
    why: str
    elements: int
    of: int
    relative: float | None


class Comparison(Frozen):
    """All tensors of two checkpoints."""

    tensors: int
    elements: int
    differences: tuple[Difference, ...]

    @property
    def share(self) -> float:
        """The share of all elements that differ."""
        return sum(d.elements for d in self.differences) / self.elements if self.elements else 0.0


class _Place(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int


def compare(before: Mapping[str, Path], after: Mapping[str, Path]) -> Comparison:
    """Compare the tensors of two sets of safetensors files by name, independent of the file.

    Raises QuantizeError for an invalid file.
    """
    one, two = _places(before), _places(after)
    found = []
    for name in sorted(one.keys() | two.keys()):
        if name not in one or name not in two:
            why = "only the rebuilt one has it" if name in two else "the rebuilt one lacks it"
            found.append(Difference(name=name, why=why, elements=0, of=0, relative=None))
        elif (kinds := _kind(one[name])) != _kind(two[name]) or _bytes(one[name]) != _bytes(two[name]):
            why = f"{kinds} became {_kind(two[name])}"
            found.append(Difference(name=name, why=why, elements=0, of=0, relative=None))
        elif (difference := _difference(name, one[name], two[name])) is not None:
            found.append(difference)
    return Comparison(tensors=len(one), elements=sum(map(_count, one.values())), differences=tuple(found))


def _places(files: Mapping[str, Path]) -> dict[str, _Place]:
    found = {}
    for path in files.values():
        spans, problems = read_spans(path)
        if problems:
            raise QuantizeError(_UNREADABLE_TENSORS, f"{path} can't be compared", problems=tuple(problems))
        for tensor, start, size in spans:
            found[tensor.name] = _Place(tensor.dtype, tensor.shape, path, start, start + size)
    return found


def _kind(place: _Place) -> str:
    return f"{place.dtype}{list(place.shape)}"


def _bytes(place: _Place) -> int:
    return place.stop - place.start


def _count(place: _Place) -> int:
    return math.prod(place.shape)


def _difference(name: str, one: _Place, two: _Place) -> Difference | None:
    width = _bytes(one) // max(1, _count(one))
    # Unknown types and those without whole bytes (4 bits) are compared by byte.
    kind = _WIDTHS.get(width, np.uint8) if width * _count(one) == _bytes(one) else np.uint8
    differing, norm, apart = 0, 0.0, 0.0
    numbers = one.dtype == "BF16" or one.dtype in _NUMBERS
    for a, b in zip(_pieces(one), _pieces(two), strict=True):
        if a == b:
            differs = False
        else:
            differs = True
            differing += int(np.count_nonzero(np.frombuffer(a, kind) != np.frombuffer(b, kind)))
        if numbers:
            first = _values(a, one.dtype)
            norm += float(np.square(first).sum())
            apart += float(np.square(first - _values(b, one.dtype)).sum()) if differs else 0.0
    if not differing:
        return None
    relative = float(np.sqrt(apart / norm)) if numbers and norm else None
    return Difference(name=name, why="other values", elements=differing, of=_count(one), relative=relative)


def _pieces(place: _Place) -> Iterator[bytes]:
    with place.file.open("rb") as file:
        file.seek(place.start)
        left = place.stop - place.start
        while left:
            piece = file.read(min(left, _PIECE_BYTES))
            left -= len(piece)
            yield piece


def _values(data: bytes, dtype: str) -> npt.NDArray[np.float64]:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    values: npt.NDArray[np.float64] = np.frombuffer(data, dtype=_NUMBERS[dtype]).astype(np.float64)
    return values
