"""Reading a transformers checkpoint by layers, and writing one, in safetensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

_ONE_FILE = 4 * 2**30
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


class Source(Protocol):
    """Where weights come from."""

    def names(self) -> Iterable[str]:
        """Every tensor's full name."""

    def read(self, names: Iterable[str], device: str) -> dict[str, Tensor]:
        """Those tensors, on a device."""


class Folder:
    """A checkpoint folder: one safetensors file, or several with an index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def names(self) -> Iterable[str]:
        """Every tensor's full name."""
        return sorted(self._files)

    def matrices(self) -> list[str]:
        """Names of weights of two dimensions."""
        found = []
        for path in sorted(set(self._files.values())):
            with safe_open(path, "pt") as file:
                found += [
                    name for name in file.keys()  # noqa: SIM118
                    if name.endswith(".weight") and len(file.get_slice(name).get_shape()) == 2
                ]  # fmt: skip
        return sorted(found)

    def read(self, names: Iterable[str], device: str) -> dict[str, Tensor]:
        """Those tensors, on a device; each file is opened once."""
        wanted: dict[Path, list[str]] = {}
        for name in names:
            wanted.setdefault(self._files[name], []).append(name)
        found: dict[str, Tensor] = {}
        for path, inside in wanted.items():
            with safe_open(path, "pt", device=device) as file:
                found |= {name: file.get_tensor(name) for name in inside}
        return found


def save(tensors: dict[str, Tensor], path: Path, **metadata: str) -> None:
    """Write one file, whole or not at all."""
    part = path.with_suffix(".part")
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, part, {"format": "pt", **metadata})
    part.replace(path)


def assemble(parts: list[Path], target: Path) -> int:
    """Make a checkpoint's weights from the files of its layers; returns their bytes.

    Up to 4 GiB become one file; above, each layer's file is moved into place as a shard, beside an index.
    """
    if sum(part.stat().st_size for part in parts) <= _ONE_FILE:
        tensors = {name: tensor for part in parts for name, tensor in load_file(part).items()}
        save(tensors, target / "model.safetensors")
        return sum(tensor.nbytes for tensor in tensors.values())
    index: dict[str, str] = {}
    total = 0
    for number, part in enumerate(parts, 1):
        name = f"model-{number:05}-of-{len(parts):05}.safetensors"
        total += part.stat().st_size
        shutil.move(part, target / name)
        with safe_open(target / name, "pt") as file:
            index |= dict.fromkeys(file.keys(), name)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}, indent=1)
    (target / "model.safetensors.index.json").write_text(text)
    return total


def copy_the_rest(source: Path, target: Path) -> None:
    """Copy the other files that servers read: tokenizer, chat template, generation config, licence."""
    for path in sorted(source.iterdir()):
        if path.name in ("config.json", "model.safetensors.index.json") or path.name.endswith(_WEIGHTS):
            continue
        if path.is_file():
            shutil.copyfile(path, target / path.name)
