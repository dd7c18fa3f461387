"""Untrusted JSON, parsed strictly and within bounds. Pure.

`json.loads` alone accepts duplicate keys, NaN, UTF-16, and as many values as fit into memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None"
"""A value of a document that is written as JSON or YAML."""
Document: TypeAlias = Mapping[str, Json]
"""An object of JSON or YAML. It is built and written in one module; other modules pass records."""

MOST_VALUES = 4_000_000
"""Values per document. A Python value takes about 100 bytes, however short its text. A release manifest with every
sample of a large evaluation has a tenth of this."""


def parse(data: bytes | str, most_values: int = MOST_VALUES) -> Any:
    """The value of a JSON document (RFC 8259, UTF-8). Raises ValueError for anything else: bytes that aren't UTF-8,
    duplicate keys, NaN and Infinity, deeper nesting than Python's stack, more than `most_values` values.
    """
    return _load(data, most_values, _unique, _refuse)


def pairs(data: bytes | str, most_values: int = MOST_VALUES) -> Any:
    """The same, with objects as lists of (key, value): duplicate keys and NaN are kept."""
    return _load(data, most_values, list, float)


def _load(data: bytes | str, most_values: int, of_pairs: Any, of_constant: Any) -> Any:
    if isinstance(data, bytes):
        data = data.decode()
    # Every value except the first of a list or an object follows a comma. Commas in strings only raise the count.
    if data.count(",") + data.count("[") + data.count("{") > most_values:
        raise ValueError(f"it has more than {most_values:,} values")
    try:
        return json.loads(data, object_pairs_hook=of_pairs, parse_constant=of_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(found: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in found:
        if key in value:
            raise ValueError(f"the key {key[:80]!r} is a duplicate")
        value[key] = item
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
