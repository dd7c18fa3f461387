"""Results of earlier stages, which are there because stages run in order."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def need(value: T | None) -> T:
    """The value. Raises AssertionError when a stage ran before the ones that it needs."""
    if value is None:
        raise AssertionError("a stage ran before the ones that it needs")
    return value
