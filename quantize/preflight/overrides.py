"""Mixed precision by pattern: the scheme of each layer, and conflicts between patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qpack.core.problems import Code, Location, Problem
from quantize.checkpoint import layer_problems
from quantize.checkpoint.layer_groups import Kind, split
from quantize.engines.protocol import Request

_CLAIMED_TWICE = Code("claimed-twice", "Two overrides match the same layer.")


@dataclass(frozen=True)
class Part:
    """Layers of one scheme, and a request for that scheme alone. `override` is its index in the recipe's list."""

    request: Request
    layers: tuple[Kind, ...]
    override: int | None = None

    def at_its_key(self, problems: Sequence[Problem]) -> list[Problem]:
        """Problems, located at the override's key."""
        if self.override is None:
            return list(problems)
        place = ("quantize", "overrides", self.override)
        return [
            replace(found, where=replace(found.where, key=(*place, *found.where.key[1:])))
            if found.where.key[0] == "quantize"
            else found
            for found in problems
        ]


def by_scheme(request: Request, layers: Sequence[Kind]) -> list[Part]:
    """The layers by the scheme that they get: the recipe's own first, if a layer is left to it, then each override.

    A layer goes to the first override that names it.
    """
    left, parts = tuple(layers), []
    for i, other in enumerate(request.overrides):
        left, theirs = split(left, (other.layers,))
        alone = replace(request, scheme=other.scheme, group_size=other.group_size, overrides=())
        parts.append(Part(alone, theirs, i))
    return [Part(replace(request, overrides=()), left), *parts] if left or not parts else parts


def check(request: Request, layers: Sequence[Kind]) -> list[Problem]:
    """Layers that two overrides match, and layers that servers fuse and that would get different schemes."""
    return [*_claimed_twice(request, layers), *_unequal(request, layers)] if request.overrides else []


def _claimed_twice(request: Request, layers: Sequence[Kind]) -> list[Problem]:
    problems = []
    for i, other in enumerate(request.overrides):
        _, theirs = split(layers, (other.layers,))
        for j, earlier in enumerate(request.overrides[:i]):
            _, both = split(theirs, (earlier.layers,))
            if both:
                what = f"'{other.layers}' and '{earlier.layers}' (overrides {i} and {j}) both match it"
                where = Location(key=("quantize", "overrides", i, "layers"), name=both[0].name)
                problems.append(Problem(_CLAIMED_TWICE, what, where, "Change a pattern so that only one matches."))
    return problems


def _unequal(request: Request, layers: Sequence[Kind]) -> list[Problem]:
    given = {name: part for part in by_scheme(request, layers) for kind in part.layers for name in kind.names}
    schemes = {name: (part.request.scheme, part.request.group_size) for name, part in given.items()}
    problems: dict[tuple[tuple[str, ...], int], Problem] = {}
    for members, families in layer_problems.unequal(schemes).items():
        for names in families:
            number = next(part.override for name in names if (part := given[name]).override is not None) or 0
            where = Location(key=("quantize", "overrides", number, "layers"), name=names[0])
            problems.setdefault((members, number), layer_problems.joined_unequal(members, where))
    return list(problems.values())
