"""The index of a sharded checkpoint: the file of each tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qpack.core import jsonfile
from qpack.core.jsonfile import NotJson

INDEX = "model.safetensors.index.json"


def read(path: Path) -> dict[str, str]:
    """Tensor -> file name. Raises NotJson unless all names are of files beside the index, and OSError."""
    found: Any = jsonfile.read_object(path, jsonfile.MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(found, dict):
        raise NotJson("has no `weight_map`")
    for name in set(map(_file_name, found.values())):
        if name is None:
            raise NotJson("has a `weight_map` with names that aren't files of its folder")
    return found


def _file_name(name: object) -> str | None:
    plain = isinstance(name, str) and name.isprintable() and not {"/", "\\"} & set(name) and name not in ("", ".", "..")
    return str(name) if plain else None
