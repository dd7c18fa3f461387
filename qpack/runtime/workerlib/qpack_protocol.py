"""What qpack and a worker hand each other, and its JSON: dataclasses, each value checked against its type.

Both sides import this file (qpack as a module of its own, a worker because it lies on its path), and the module beside
the worker that declares its job and its answer. So neither may import anything but the standard library, and no syntax
is newer than Python 3.9: `Optional[int]`, not `int | None`.

A field is a str, int, float (finite), bool, None, Literal, Optional or Union, tuple, dict with text keys, another
dataclass, or `object`: any JSON, for somebody else's document.
"""

import dataclasses
import json
import math
import os
import typing
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")

_NAMES = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number", type(None): "null"}


class Mismatch(ValueError):
    """JSON that isn't of its type; the message begins with the field."""


@dataclasses.dataclass(frozen=True)
class Order:
    """The job file: the folder to write into, and the job."""

    out: str
    job: object


@dataclasses.dataclass(frozen=True)
class Progress:
    """An event: how far the work is. `total` 0 means that nobody knows."""

    done: int
    total: int
    what: str
    event: Literal["progress"] = "progress"


@dataclasses.dataclass(frozen=True)
class Failure:
    """An event: what went wrong, what to do, and what it came from."""

    what: str
    hint: str = ""
    kind: Literal["error", "bad_input", "disk_full"] = "error"
    causes: tuple[str, ...] = ()
    event: Literal["error"] = "error"


def encode(value: Any) -> Any:
    """A dataclass as plain data. Raises Mismatch when one of its values isn't of its type."""
    plain = dataclasses.asdict(value)
    decode(type(value), plain)
    return plain


def decode(kind: type[T], plain: Any) -> T:
    """Plain data as an instance of `kind`, a dataclass. Raises Mismatch, naming the field."""
    found: T = _read(kind, plain, "")
    return found


def write_order(path: Union[str, os.PathLike[str]], out: str, job: object) -> None:
    """Write the job file of a worker that writes into the folder `out`. Raises Mismatch and OSError."""
    write(path, Order(out, encode(job)))


def write(path: Union[str, os.PathLike[str]], value: Any) -> None:
    """Write a dataclass as JSON, whole or not at all. Raises Mismatch and OSError."""
    part = f"{os.fspath(path)}.part"
    with open(part, "w", encoding="utf-8") as file:
        json.dump(encode(value), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def read(path: Union[str, os.PathLike[str]], kind: type[T]) -> T:
    """The dataclass in a file. Raises Mismatch for whatever else is in it, and OSError."""
    with open(path, "rb") as file:
        return parse(file.read(), kind)


def parse(data: bytes, kind: type[T]) -> T:
    """The dataclass in JSON. Raises Mismatch for whatever else it is."""
    return decode(kind, _json(data))


def event(line: bytes) -> Union[Progress, Failure]:
    """An event of a worker. Raises Mismatch."""
    found: Union[Progress, Failure] = _read(Union[Progress, Failure], _json(line), "")
    return found


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Mismatch(f"it isn't JSON: {error}") from error


def _read(kind: Any, plain: Any, at: str) -> Any:
    """`plain` as a `kind`, which stands at `at`."""
    if kind is object:
        return plain
    if dataclasses.is_dataclass(kind):
        return _record(kind, plain, at)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Union:
        return _one_of(arguments, plain, at)
    if origin is Literal:
        if any(type(plain) is type(choice) and plain == choice for choice in arguments):
            return plain
        raise _wrong(at, " or ".join(map(repr, arguments)), plain)
    if origin is tuple:
        return _sequence(arguments, plain, at)
    if origin is dict:
        if not isinstance(plain, dict) or not all(isinstance(key, str) for key in plain):
            raise _wrong(at, "an object", plain)
        return {key: _read(arguments[1], value, f"{at}[{key!r}]") for key, value in plain.items()}
    return _scalar(kind, plain, at)


def _record(kind: Any, plain: Any, at: str) -> Any:
    """A dataclass: every field that has no default, and no others."""
    if not isinstance(plain, dict):
        raise _wrong(at, "an object", plain)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in plain:
        if name not in fields:
            raise Mismatch(f"{_place(at, str(name))}: unknown field")
    values = {}
    for name, field in fields.items():
        if name in plain:
            values[name] = _read(hints[name], plain[name], _place(at, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise Mismatch(f"{_place(at, name)}: missing")
    return kind(**values)


def _one_of(kinds: Any, plain: Any, at: str) -> Any:
    """An Optional, or one of several dataclasses, told apart by their fields of one literal."""
    if plain is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    if len(others) > 1:
        tags = [_tag(kind) for kind in others]
        others = [
            kind
            for kind, (name, value) in zip(others, tags)  # noqa: B905
            if isinstance(plain, dict) and plain.get(name) == value
        ]
        if not others:
            raise _wrong(at, " or ".join(f"{name} {value!r}" for name, value in tags), plain)
    return _read(others[0], plain, at)


def _tag(kind: Any) -> tuple[str, object]:
    """The field of one literal, and that literal."""
    for name, hint in typing.get_type_hints(kind).items():
        if typing.get_origin(hint) is Literal and len(typing.get_args(hint)) == 1:
            return name, typing.get_args(hint)[0]
    raise TypeError(f"{kind.__name__} has no field that tells it from others")


def _sequence(kinds: Any, plain: Any, at: str) -> Any:
    if not isinstance(plain, (list, tuple)):
        raise _wrong(at, "a list", plain)
    if kinds[-1] is Ellipsis:
        return tuple(_read(kinds[0], value, f"{at}[{i}]") for i, value in enumerate(plain))
    if len(plain) != len(kinds):
        raise _wrong(at, f"a list of {len(kinds)}", plain)
    return tuple(_read(kind, value, f"{at}[{i}]") for i, (kind, value) in enumerate(zip(kinds, plain)))  # noqa: B905


def _scalar(kind: Any, plain: Any, at: str) -> Any:
    if isinstance(plain, bool) is not (kind is bool):
        raise _wrong(at, _NAMES[kind], plain)
    if kind is float and isinstance(plain, int):
        plain = _float(plain)
    if not isinstance(plain, kind) or (kind is float and not math.isfinite(plain)):
        raise _wrong(at, _NAMES[kind], plain)
    return plain


def _float(whole: int) -> float:
    try:
        return float(whole)
    except OverflowError:
        return math.inf


def _place(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _wrong(at: str, wanted: str, plain: Any) -> Mismatch:
    """The place, what belongs there, and the beginning of what stands there."""
    found = "null" if plain is None else repr(plain)
    return Mismatch(f"{at or 'the whole'}: has to be {wanted}, and is {found[:80]}{'...' if len(found) > 80 else ''}")
