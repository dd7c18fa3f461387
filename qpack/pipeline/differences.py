"""Where the inputs of two results differ, by name. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ABSENT = "none"
_SHOWN = 40  # characters: longer values aren't shown


@dataclass(frozen=True)
class Difference:
    """One value, as JSON: `at` is where it is (`ask.seed`), `now` is required, `then` is stored."""

    at: str
    now: str
    then: str

    @property
    def short(self) -> bool:
        """Whether the values are short enough to show."""
        return len(self.now) <= _SHOWN and len(self.then) <= _SHOWN


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Every value that the two don't share, in the order of `now`."""
    one, other = dict(flat(now)), dict(flat(then))
    names = (*one, *(name for name in other if name not in one))
    # An empty object that has values on the other side: only those are reported.
    filled = {name[:end] for name in names for end in range(len(name)) if name[end] == "."}
    names = tuple(name for name in names if name not in filled)
    return tuple(
        Difference(name, one.get(name, ABSENT), other.get(name, ABSENT))
        for name in names
        if one.get(name) != other.get(name)
    )


def flat(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """(place, value as JSON) of everything in nested data. An empty list or object is a value."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list | tuple) and value:
        for number, inner in enumerate(value):
            yield from flat(inner, f"{at}.{number}")
    else:
        yield at, json.dumps(value, ensure_ascii=False, default=str)
