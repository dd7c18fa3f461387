"""A checkpoint folder for the checks: headers, JSON files, and samples of tensors. No tensor is loaded whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.core import checkpoint_files, jsonfile
from qpack.core.errors import QuantizeError
from qpack.core.jsonfile import JsonObject, NotJson
from qpack.core.problems import UNREADABLE_FILE, Code, Location, Problem, named
from quantize.checkpoint import model_config, shards
from quantize.checkpoint.headers import TRUNCATED, Span, Tensor, read_spans
from quantize.checkpoint.model_config import NOT_JSON
from quantize.checkpoint.shards import INDEX
from quantize.doctor import decode
from quantize.doctor.decode import Floats, Integers

_STORED_TWICE = Code("stored-twice", "A tensor is in two files, and there is no index.")

# Files that a check reads. An unreadable one is reported once.
_JSON = frozenset(("tokenizer_config.json", "generation_config.json"))
# The tensors of a layer, except its bias.
PARTS = ("weight", "weight_packed", "weight_scale", "weight_scale_inv", "weight_zero_point", "weight_shape",
         "weight_g_idx", "weight_global_scale", "weight_scale_2", "input_scale", "input_zero_point",
         "input_global_scale", "qweight", "qzeros", "scales", "g_idx")  # fmt: skip
_BLOCK = 4096
_MAX_SIZE = 2**31
_MAX_TEXT = 2**22


@dataclass(frozen=True)
class Layer:
    """The tensors of one layer, by the last part of their names."""

    name: str
    parts: Mapping[str, Tensor]

    @property
    def quantized(self) -> bool:
        """Whether its weight is stored in a quantized form."""
        weight = self.parts.get("weight")
        packed = "weight_packed" in self.parts or "qweight" in self.parts
        return packed or (weight is not None and weight.dtype in ("I8", "U8", "F8_E4M3", "F8_E5M2", "F4"))

    @property
    def linear(self) -> bool:
        """Whether it is a linear layer, quantized or not, by its tensors' names and shapes."""
        weight = self.parts.get("weight")
        return self.quantized or (weight is not None and weight.is_linear)


@dataclass(frozen=True)
class Checkpoint:
    """`sample` is how many bytes of one tensor are read at most; 0 reads all of them."""

    folder: Path
    config: JsonObject
    tensors: Mapping[str, Span]
    holders: Mapping[str, str]
    """Tensor to the file that holds it."""
    index: Mapping[str, str]
    """Tensor to the file that the index names; empty without an index."""
    files: frozenset[str]
    sample: int
    sidecar: JsonObject = field(default_factory=dict)
    """The quantization config of a file of its own."""

    @property
    def text_config(self) -> JsonObject:
        """The config of the language model: `text_config` of a multimodal model, else the whole."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config

    @property
    def quantization(self) -> JsonObject | None:
        """The checkpoint's quantization config."""
        for place in (self.config.get("quantization_config"), self.text_config.get("quantization_config")):
            if isinstance(place, dict):
                return place
        return self.sidecar or None

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """Every layer that has one of `PARTS`."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, span in self.tensors.items():
            stem, _, last = name.rpartition(".")
            if last in PARTS and stem:
                found.setdefault(stem, {})[last] = span.tensor
        return {name: Layer(name, parts) for name, parts in found.items()}

    def json(self, name: str) -> JsonObject:
        """A JSON file of the folder; empty if it is missing or unreadable (`read` reports that)."""
        try:
            return jsonfile.read_object(self.folder / name)
        except (OSError, NotJson):
            return {}

    def text(self, name: str) -> str:
        """A text file of the folder; empty when it can't be read, or is longer than any template."""
        try:
            with (self.folder / name).open("rb") as file:
                return file.read(_MAX_TEXT).decode("utf-8", "replace")
        except OSError:
            return ""

    def shape_of(self, layer: str) -> tuple[int, int] | None:
        """[out, in] before packing as compressed-tensors stores it, `weight_shape`; None where that isn't a shape."""
        span = self.tensors.get(f"{layer}.weight_shape")
        if span is None or span.tensor.shape != (2,) or not decode.is_integer(span.tensor.dtype):
            return None
        rows, columns = (int(size) for size in self.integers(span.tensor.name))
        return (rows, columns) if 0 < rows < _MAX_SIZE and 0 < columns < _MAX_SIZE else None

    def floats(self, name: str, dtype: str | None = None) -> Floats:
        """Values of a float tensor, or an evenly spread sample of them: shape [n]. `dtype` is the type of its bytes
        if the file names another one.
        """
        return decode.floats(self._bytes(name), dtype or self.tensors[name].tensor.dtype)

    def integers(self, name: str) -> Integers:
        """Values of an integer tensor, or an evenly spread sample of them: shape [n]."""
        return decode.integers(self._bytes(name), self.tensors[name].tensor.dtype)

    def floats_at(self, name: str, *indices: NDArray[np.intp], dtype: str | None = None) -> Floats:
        """Values of a float tensor where its axes have these indices: of shape [len(index) of each axis]. `dtype` as in
        `floats`.
        """
        picked = self._at(name, indices)
        return decode.floats(picked.tobytes(), dtype or self.tensors[name].tensor.dtype).reshape(picked.shape)

    def integers_at(self, name: str, *indices: NDArray[np.intp]) -> Integers:
        """Values of an integer tensor where its axes have these indices."""
        picked = self._at(name, indices)
        return decode.integers(picked.tobytes(), self.tensors[name].tensor.dtype).reshape(picked.shape)

    def _at(self, name: str, indices: tuple[NDArray[np.intp], ...]) -> NDArray[np.void]:
        """Raw items of a memory-mapped file; only the pages that hold them are read."""
        span = self.tensors[name]
        item = np.dtype(f"V{decode.ITEM_BYTES[span.tensor.dtype]}")
        path = self.folder / self.holders[name]
        mapped = np.memmap(path, item, "r", offset=span.start, shape=span.tensor.shape)
        return mapped[np.ix_(*indices)]

    def _bytes(self, name: str) -> bytes:
        span = self.tensors[name]
        with (self.folder / self.holders[name]).open("rb") as file:
            if not self.sample or span.size <= self.sample:
                file.seek(span.start)
                return file.read(span.size)
            # From the first block to the last; every start is a multiple of 8 bytes, and no item is longer.
            blocks, last = self.sample // _BLOCK, span.size - _BLOCK
            starts = [last * number // (blocks - 1) // 8 * 8 for number in range(blocks - 1)]
            read = bytearray()
            for start in (*starts, last):
                file.seek(span.start + start)
                read += file.read(_BLOCK)
            return bytes(read)


def read(folder: Path, sample: int) -> tuple[Checkpoint, list[Problem]]:
    """The checkpoint without its unreadable files, and the problems of its files."""
    findings: list[Problem] = []

    def read_json(name: str) -> JsonObject:
        path = folder / name
        if not path.is_file():
            return {}
        try:
            return jsonfile.read_object(path)
        except (NotJson, OSError) as error:
            findings.append(_not_json(name, error))
            return {}

    try:
        files = frozenset(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise QuantizeError(UNREADABLE_FILE, f"{folder} can't be read: {error.strerror or error}") from None
    findings += checkpoint_files.no_config(files, Location())
    index = _index(folder, files, findings)
    tensors: dict[str, Span] = {}
    holders: dict[str, str] = {}
    twice: list[str] = []
    for path in sorted(folder / name for name in _weights(files, index)):
        spans, problems = read_spans(path)
        # Whatever keeps a file of weights from being read, a server can't read it either.
        findings += [replace(problem, code=TRUNCATED, where=Location(path.name)) for problem in problems]
        for span in spans:
            if span.tensor.name in tensors:
                twice.append(span.tensor.name)
                if index.get(span.tensor.name) != path.name:
                    continue
            tensors[span.tensor.name] = span
            holders[span.tensor.name] = path.name
    findings += checkpoint_files.no_weights(files, Location())
    if twice and not index:
        hint = "Remove the copies."
        findings.append(Problem(_STORED_TWICE, "stored in more than one file", named(twice), hint))
    sidecar: dict[str, Any] = {}
    for name, method in checkpoint_files.SIDECARS.items():
        if found := read_json(name):
            sidecar = {"quant_method": method, **found}
    for name in _JSON & files:
        read_json(name)
    config, wrong = model_config.read(read_json("config.json"), "config.json")
    findings += wrong
    return Checkpoint(folder, config, tensors, holders, index, files, sample, sidecar), findings


def _not_json(name: str, error: Exception) -> Problem:
    return Problem(NOT_JSON, f"can't be read: it {error}", Location(name), "Copy it again.")


def _index(folder: Path, files: frozenset[str], findings: list[Problem]) -> dict[str, str]:
    if INDEX not in files:
        return {}
    try:
        return shards.read(folder / INDEX)
    except (NotJson, OSError) as error:
        findings.append(_not_json(INDEX, error))
        return {}


def _weights(files: frozenset[str], index: Mapping[str, str]) -> set[str]:
    """The files that a server reads: those of the index if all are there, and never another format's beside them."""
    named = set(index.values())
    if named and named <= files:
        return named
    found = {name for name in files if name.endswith(".safetensors")}
    others = {name for name in found if name.startswith(("consolidated", "adapter_model"))}
    return found - others or found
