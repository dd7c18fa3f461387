"""Jobs and answers of every worker as JSON: what comes back is what was sent, or an error that names the field."""

from __future__ import annotations

import dataclasses
import importlib
import json
import typing
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpack.runtime.workerlib.qpack_protocol import Failure, Mismatch, Order, Progress, decode, encode

ROOT = Path(__file__).parents[2]
FILES = sorted(path for package in ("quantize", "evals", "registry") for path in (ROOT / package).rglob("workers/*.py"))
# The others run in a worker's environment alone.
MODULES = [
    importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for path in FILES
    if path.stem.endswith(("_job", "_answer"))
]
KINDS = [Order, Progress, Failure] + [
    kind
    for module in MODULES
    for kind in vars(module).values()
    if dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=5),
    int: st.integers(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    type(None): st.none(),
    object: JSON,
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type that a field may have."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{name: values(hint) for name, hint in hints.items()})  # type: ignore[arg-type]
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is Union:
        return st.one_of(map(values, inside))
    if origin is Literal:
        return st.sampled_from(inside)
    if origin is tuple:
        several = inside[-1] is Ellipsis
        return st.lists(values(inside[0]), max_size=2).map(tuple) if several else st.tuples(*map(values, inside))
    if origin is dict:
        return st.dictionaries(st.text(max_size=5), values(inside[1]), max_size=2)
    return SCALARS[kind]


def test_every_worker_has_its_job_here() -> None:
    scripts = [path for path in FILES if path.stem.endswith("_worker")]
    assert len(MODULES) >= len(scripts) - 1, "vllm_bench_job has the jobs of two workers"
    assert len(KINDS) > 40


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}")
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_what_comes_back_is_what_was_sent(kind: Any, data: st.DataObject) -> None:
    value = data.draw(values(kind))
    assert decode(kind, json.loads(json.dumps(encode(value)))) == value


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}")
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_field_that_is_missing_unknown_or_of_another_type_is_named(kind: Any, data: st.DataObject) -> None:
    value = data.draw(values(kind))
    plain = json.loads(json.dumps(encode(value)))
    with pytest.raises(Mismatch, match=r"^unknown_field: unknown field"):
        decode(kind, {**plain, "unknown_field": 1})
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            with pytest.raises(Mismatch, match=rf"^{field.name}: missing"):
                decode(kind, {name: given for name, given in plain.items() if name != field.name})
        if typing.get_type_hints(kind)[field.name] is not object:
            with pytest.raises(Mismatch, match=rf"^{field.name}"):
                decode(kind, {**plain, field.name: complex(1)})


@dataclasses.dataclass(frozen=True)
class Inner:
    at: Optional[float]  # noqa: UP045


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int
    rows: tuple[tuple[Inner, ...], ...] = ()
    named: dict[str, str] = dataclasses.field(default_factory=dict)
    pair: tuple[int, str] = (0, "")


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"count": 1.0}, "count: has to be a whole number, and is 1.0"),
        ({"count": True}, "count: has to be a whole number, and is True"),
        ({"count": None}, "count: has to be a whole number, and is null"),
        ({"count": 1, "rows": [[], [{"at": 1}, {"at": "2"}]]}, "rows[1][1].at: has to be a finite number, and is '2'"),
        ({"count": 1, "rows": [[{"at": float("nan")}]]}, "rows[0][0].at: has to be a finite number, and is nan"),
        ({"count": 1, "rows": [[{"at": 10**400}]]}, "rows[0][0].at: has to be a finite number"),
        ({"count": 1, "rows": "ab"}, "rows: has to be a list, and is 'ab'"),
        ({"count": 1, "named": {"a": 1}}, "named['a']: has to be text, and is 1"),
        ({"count": 1, "pair": [1]}, "pair: has to be a list of 2, and is [1]"),
        ([], "the whole: has to be an object, and is []"),
        ({"count": "x" * 1000}, f"count: has to be a whole number, and is '{'x' * 79}..."),
    ],
)
def test_the_place_and_what_is_wrong_there(plain: Any, said: str) -> None:
    with pytest.raises(Mismatch) as caught:
        decode(Outer, plain)
    assert str(caught.value).startswith(said)


def test_whole_numbers_are_numbers_and_null_is_what_an_optional_may_be() -> None:
    found = decode(Outer, {"count": 1, "rows": [[{"at": 2}, {"at": None}]]})
    assert found.rows == ((Inner(2.0), Inner(None)),)
    assert isinstance(found.rows[0][0].at, float)


def test_a_value_of_the_wrong_type_is_not_sent() -> None:
    with pytest.raises(Mismatch, match=r"^count: has to be a whole number, and is '1'"):
        encode(Outer("1"))  # type: ignore[arg-type]
