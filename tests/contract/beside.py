"""The job and the answer of a test's worker, in the module beside it that both sides import."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A number."""

    x: int


@dataclass(frozen=True)
class Seen:
    """What a worker sees of its surroundings."""

    variables: dict[str, str]
    path: tuple[str, ...]
    isolated: int
    child: tuple[str, ...]
    spawned: tuple[int, ...]


@dataclass(frozen=True)
class Sum:
    """A number, and where the worker looks for modules."""

    y: int
    path: tuple[str, ...] = ()


def own(_: int) -> int:
    """Whether this process is isolated."""
    return sys.flags.isolated
