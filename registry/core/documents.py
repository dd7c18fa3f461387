"""JSON that a stranger may have written: read strictly, with bounds, or refused. Pure.

`json.loads` alone takes the last of two equal keys, NaN, UTF-16, and as many values as memory holds.
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
"""Values in one document: a value of Python takes some 100 bytes, however short its text. A release manifest with
every sample of a large evaluation has a tenth of it."""


def parse(data: bytes | str, most_values: int = MOST_VALUES) -> Any:
    """The value of a JSON document (RFC 8259, UTF-8). Raises ValueError for anything else: bytes that aren't UTF-8, two
    equal keys in one object, NaN and Infinity, deeper nesting than Python's stack, more than `most_values` values.
    """
    return _load(data, most_values, _unique, _refuse)


def pairs(data: bytes | str, most_values: int = MOST_VALUES) -> Any:
    """The same with objects as lists of (key, value), and NaN: nothing that a document says is lost, equal keys
    included.
    """
    return _load(data, most_values, list, float)


def _load(data: bytes | str, most_values: int, of_pairs: Any, of_constant: Any) -> Any:
    if isinstance(data, bytes):
        data = data.decode()
    # Every value but the first of a list or an object stands behind a comma; those inside texts only count too much.
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
            raise ValueError(f"the key {key[:80]!r} is there twice")
        value[key] = item
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
