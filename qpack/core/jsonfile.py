"""JSON that somebody else wrote: bounded in size and depth before anybody looks into it.

What Python's parser takes and other readers don't, or what breaks those who use it later, is refused here: text that
isn't UTF-8, a nesting that no recursion follows, keys that stand twice, halves of surrogate pairs (RFC 8259, 8.2).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from qpack.core.hashing import open_regular

MAX_BYTES = 2**24
"""Of a config. The largest that are known, with a list of every module in them, have 2 MB."""
MAX_INDEX_BYTES = 100_000_000
"""Of an index of tensors, as of a safetensors header."""
MAX_DEPTH = 64
_PIECE = 2**16


JsonObject: TypeAlias = Mapping[str, Any]
"""Somebody else's document, for reading: a config.json, an index of tensors. Nothing in it is checked."""


class NotJson(ValueError):
    """Why a text isn't JSON that is read here, as the end of a sentence about the file: `is not JSON: ...`."""


def loads(data: bytes | bytearray) -> Any:
    """The value of a JSON text. Raises NotJson; memory is within a multiple of `data`."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    except RecursionError:
        raise NotJson(f"is nested deeper than {MAX_DEPTH} levels") from None
    except NotJson:
        raise
    except UnicodeDecodeError as error:
        raise NotJson(f"is not UTF-8 (byte {error.start})") from None
    except ValueError as error:
        raise NotJson(f"is not JSON: {error}") from None
    _check(value)
    return value


def read(path: Path, limit: int = MAX_BYTES) -> Any:
    """The value of a JSON file of `limit` bytes at most. Raises NotJson, and OSError where it can't be read."""
    data = bytearray()
    with open_regular(path) as file:
        # Piece by piece: `read(limit)` would take that memory for a file of any size.
        while len(data) <= limit and (piece := file.read(_PIECE)):
            data += piece
    if len(data) > limit:
        raise NotJson(f"has more than {limit:,} bytes")
    return loads(data)


def read_object(path: Path, limit: int = MAX_BYTES) -> JsonObject:
    """The same for a file that holds an object. Raises NotJson and OSError."""
    value = read(path, limit)
    if not isinstance(value, dict):
        raise NotJson("is not a JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise NotJson(f"has the key {twice[:64]!r} twice")
    return found


def _check(value: Any) -> None:
    """Raise NotJson for what is too deep, and for text that can't be written anywhere."""
    level = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for each in level:
            if isinstance(each, str):
                _encodable(each)
            elif isinstance(each, list):
                deeper += each
            elif isinstance(each, dict):
                deeper += each.values()
                for key in each:
                    _encodable(key)
        if not deeper:
            return
        level = deeper
    raise NotJson(f"is nested deeper than {MAX_DEPTH} levels")


def _encodable(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise NotJson("has half of a surrogate pair, which is no text") from None
