"""Where a stage leaves its result in a build, and others find it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Slot(Generic[T]):
    """The place of a stage's result, of type `T`: `build.require(SLOT)`."""

    stage: str
