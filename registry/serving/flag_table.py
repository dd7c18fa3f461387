"""The flags of vLLM's parser: types, choices, bounds, number of values.

`make flags` writes `vllm_flags.json` from the parser of the vLLM version that it names; a test compares the two.
`registry.serving.trust` decides which flags a release may set.
"""

from __future__ import annotations

import functools
import json
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("vllm_flags.json")

_SHOWN = 8
"""The most choices in a message."""

_INT = re.compile(r"-?[0-9]{1,18}")
_SIZE = re.compile(r"-?[0-9]{1,18}|[0-9]{1,12}[kKmMgGtT]|[0-9]{1,12}\.[0-9]{1,6}[kmgt]")
_FLOAT = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,2})?")
_UNITS = {
    **dict(zip("kmgt", (10**3, 10**6, 10**9, 10**12), strict=True)),
    **dict(zip("KMGT", (2**10, 2**20, 2**30, 2**40), strict=True)),
}
_WORDS = {"int": "an integer", "size": "an integer", "float": "a number", "json": "JSON", "text": "a text"}


@dataclass(frozen=True)
class Flag:
    """One flag, or one key of a flag that takes JSON.

    `type` is `switch` (has a `--no-` form), `on` (no value, no `--no-`), `int`, `size` (an integer with an optional
    unit, such as 2k), `float`, `json` or `text`. `choices` None allows any value of the type. `many`: how several
    values are given: `list` after one flag, `append` by repeating the flag, None not at all. `fields` are the known
    keys of its JSON.
    """

    type: str
    choices: frozenset[str] | None = None
    many: str | None = None
    default: Any = None
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    fields: Mapping[str, Flag] = field(default_factory=dict)


@functools.cache
def flags() -> Mapping[str, Flag]:
    """Every flag by its first long name, without leading dashes."""
    return {name: _flag(entry) for name, entry in _data()["flags"].items()}


@functools.cache
def variables() -> frozenset[str]:
    """The environment variables that vLLM reads."""
    return frozenset(_data()["variables"])


def written(version: str, flags_: Mapping[str, Any], variables_: list[str]) -> str:
    """The content of `vllm_flags.json`: one flag per line."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry, sort_keys=True)}" for name, entry in flags_.items())
    names = ",\n".join(f"  {json.dumps(name)}" for name in variables_)
    return f'{{\n "version": {json.dumps(version)},\n "flags": {{\n{lines}\n }},\n "variables": [\n{names}\n ]\n}}\n'


def misfit(flag: Flag, value: object) -> str | None:
    """What the parser expects instead of `value`, for a sentence with "takes"; None if it accepts the value.

    Keys of JSON flags are checked by the caller.
    """
    if flag.type in ("switch", "on"):
        fits = value is True or (value is False and flag.type == "switch")
        return None if fits else "true or false" if flag.type == "switch" else "true alone"
    if isinstance(value, list):
        if flag.many is None:
            return f"one value, and this is a list of {len(value)}"
        return next(filter(None, (_misfit(flag, item) for item in value)), None) if value else "at least one value"
    return _misfit(flag, value)


def _misfit(flag: Flag, value: object) -> str | None:
    if flag.choices is not None:
        if not isinstance(value, bool) and isinstance(value, str | int) and str(value) in flag.choices:
            return None
        names = sorted(flag.choices)
        more = f" or {len(names) - _SHOWN} others" if len(names) > _SHOWN else ""
        return f"one of {', '.join(names[:_SHOWN])}{more}"
    if flag.type not in ("int", "size", "float"):
        return None if isinstance(value, str) else _WORDS[flag.type]
    number = _number(flag.type, value)
    if number is None:
        return _WORDS[flag.type]
    for bound, holds, words in (
        (flag.least, operator.ge, "or more"),
        (flag.above, operator.gt, "and above"),
        (flag.most, operator.le, "or less"),
        (flag.below, operator.lt, "and below"),
    ):
        if bound is not None and not holds(number, bound):
            return f"{_WORDS[flag.type]} of {bound:g} {words}"
    return None


def _number(kind: str, value: object) -> float | int | None:
    """The number that the parser reads, or None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if abs(value) < 2**63 else None
    if isinstance(value, float):
        return value if kind == "float" and math.isfinite(value) else None
    pattern = {"int": _INT, "size": _SIZE, "float": _FLOAT}[kind]
    if not isinstance(value, str) or not pattern.fullmatch(value):
        return None
    if kind == "size" and value[-1] in _UNITS:
        return int(float(value[:-1]) * _UNITS[value[-1]])
    return float(value) if kind == "float" else int(value)


def _flag(entry: Mapping[str, Any]) -> Flag:
    more = dict(entry)
    choices, fields = more.pop("choices", None), more.pop("fields", {})
    return Flag(
        **more,
        choices=None if choices is None else frozenset(choices),
        fields={name: _flag(each) for name, each in fields.items()},
    )


@functools.cache
def _data() -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads(DATA.read_text("utf-8"))
    return found
