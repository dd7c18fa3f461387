"""Damages a checkpoint folder: its JSON files, its tensors, its files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Raw = dict[str, tuple[str, list[int], bytes]]
"""Name to (dtype, shape, bytes)."""


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change config.json."""
    edit(folder / "config.json", change)


def quantization(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the quantization config."""
    config(folder, lambda found: change(found["quantization_config"]))


def load(path: Path) -> Raw:
    """A safetensors file, as bytes."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    return {
        name: (t["dtype"], t["shape"], body[t["data_offsets"][0] : t["data_offsets"][1]])
        for name, t in header.items()
        if name != "__metadata__"
    }


def store(path: Path, tensors: Raw) -> None:
    """Write a safetensors file."""
    header, body = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def tensors(folder: Path, change: Callable[[Raw], object]) -> None:
    """Change the weights; a link to another checkpoint's file is replaced by a file of its own."""
    path = folder / "model.safetensors"
    found = load(path)
    change(found)
    path.unlink()
    store(path, found)


def fill(name: str, word: bytes, share: float = 1.0) -> Callable[[Raw], None]:
    """Put `word` again and again into the first `share` of a tensor."""

    def change(found: Raw) -> None:
        dtype, shape, raw = found[name]
        part = int(len(raw) * share) // len(word) * len(word)
        found[name] = (dtype, shape, word * (part // len(word)) + raw[part:])

    return change


def shards(folder: Path, parts: int = 2) -> None:
    """Split the weights into files with an index."""
    found = load(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, index = sorted(found), {}
    for number in range(parts):
        file = f"model-{number + 1:05}-of-{parts:05}.safetensors"
        mine = names[number::parts]
        store(folder / file, {name: found[name] for name in mine})
        index.update(dict.fromkeys(mine, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
