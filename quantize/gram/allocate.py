"""Mixed precision: choose a grid per part of a model, with the least total error within a budget of bits.

Each part has choices of (bits, error). Of these only the lower convex hull is used: there each further bit saves less
than the one before it. The steps of all hulls are taken in order of error saved per bit, until one doesn't fit
(the Lagrangian solution of Everett, "Generalized Lagrange Multiplier Method", 1963; for rate and distortion Shoham and
Gersho, 1988). So a larger budget takes the same steps and more: its error is never larger.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("q_a_proj", "kv_a_proj_with_mqa"), ("w1", "w3"),
          ("in_proj_qkv", "in_proj_z"), ("in_proj_b", "in_proj_a"))  # fmt: skip
"""Layers that servers fuse into one. All experts of a layer count as one too."""


@dataclass(frozen=True)
class Choice:
    """A part with one grid: its stored bits, and its remaining error."""

    bits: int
    error: float


class TooSmall(ValueError):
    """The budget is below the cheapest choices, which take `bits`."""

    def __init__(self, bits: int) -> None:
        super().__init__(f"the cheapest choices take {bits} bits")
        self.bits = bits


def allocate(parts: Sequence[Sequence[Choice]], budget: float) -> list[int]:
    """The index of each part's choice, with at most `budget` bits in total. Raises TooSmall."""
    hulls = [_hull(choices) for choices in parts]
    chosen = [hull[0] for hull in hulls]
    spent = sum(choices[i].bits for choices, i in zip(parts, chosen, strict=True))
    if spent > budget:
        raise TooSmall(spent)
    steps = []
    for part, hull in enumerate(hulls):
        for before, after in itertools.pairwise(hull):
            saved = (parts[part][before].error - parts[part][after].error) / _bits(parts[part], before, after)
            steps.append((-saved, part, before, after))
    # Ties go to the first part; within a part savings fall, so its steps stay in order.
    for _, part, before, after in sorted(steps):
        spent += _bits(parts[part], before, after)
        if spent > budget:
            break
        chosen[part] = after
    return chosen


def _bits(choices: Sequence[Choice], before: int, after: int) -> int:
    return choices[after].bits - choices[before].bits


def _hull(choices: Sequence[Choice]) -> list[int]:
    """Indices of the lower convex hull, from few bits to many: errors fall, and fall less with each step."""
    order = sorted(range(len(choices)), key=lambda i: (choices[i].bits, choices[i].error, i))
    hull: list[int] = []
    for i in order:
        if hull and choices[i].error >= choices[hull[-1]].error:
            continue
        while len(hull) > 1 and _slope(choices, hull[-2], hull[-1]) <= _slope(choices, hull[-1], i):
            hull.pop()
        hull.append(i)
    return hull


def _slope(choices: Sequence[Choice], before: int, after: int) -> float:
    """Error saved per bit."""
    return (choices[before].error - choices[after].error) / _bits(choices, before, after)


def part_of(layer: str, linear: str) -> str:
    """One name for all layers that servers fuse with `linear` of `layer` and that need the same grid."""
    name = f"{layer}.{linear}"
    if ".experts." in name:
        return name.partition(".experts.")[0] + ".experts"
    return joined_of(name)


def joined_of(name: str) -> str:
    """One name for all layers that servers make one of."""
    stem, _, own = name.rpartition(".")
    return next((f"{stem}.{members[0]}" for members in JOINED if own in members), name)
