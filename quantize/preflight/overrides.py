"""Mixed precision by pattern: the scheme of each layer, and conflicts between patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qpack.core.problems import Code, Location, Problem
from quantize.checkpoint import layer_problems
from quantize.checkpoint.layer_groups import Kind, split
from quantize.engines.protocol import Request
from quantize.schemes.schemes import UNQUANTIZED

_CLAIMED_TWICE = Code("claimed-twice", "Two overrides match the same layer.")


@dataclass(frozen=True)
class Part:
    """Layers of one scheme, and a request for that scheme alone. `override` is its index in the recipe's list, `choice`
    that of what a budget chooses among.
    """

    request: Request
    layers: tuple[Kind, ...]
    override: int | None = None
    choice: int | None = None

    def at_its_key(self, problems: Sequence[Problem]) -> list[Problem]:
        """Problems, located at the override's key, or the choice's."""
        if self.choice is not None:
            at = ("quantize", "choices", self.choice, "schemes")
            return [
                replace(
                    found,
                    where=replace(found.where, key=at),
                    hint="Take that scheme out of the choice, or narrow the pattern.",
                )
                if found.where.key[0] == "quantize"
                else found
                for found in problems
            ]
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

    A layer goes to the first override that names it. Where a budget chooses, a layer is in a part for each scheme that
    it may get.
    """
    if request.choices:
        return _by_choice(request, layers)
    left, parts = tuple(layers), []
    for i, other in enumerate(request.overrides):
        left, theirs = split(left, (other.layers,))
        alone = replace(request, scheme=other.scheme, group_size=other.group_size, overrides=())
        parts.append(Part(alone, theirs, i))
    return [Part(replace(request, overrides=()), left), *parts] if left or not parts else parts


def _by_choice(request: Request, layers: Sequence[Kind]) -> list[Part]:
    alone = replace(request, choices=(), budget=None, per_token=False)
    left, parts = tuple(layers), []
    for i, choice in enumerate(request.choices):
        left, theirs = split(left, (choice.layers,))
        parts += [
            Part(replace(alone, scheme=scheme, group_size=choice.groups(scheme)), theirs, choice=i)
            for scheme in choice.schemes
            if scheme != UNQUANTIZED and theirs
        ]
    return [Part(alone, left), *parts] if left else parts


def choices_of(request: Request, layers: Sequence[Kind]) -> dict[str, int | None]:
    """The choice of each layer by name; None for those that get the recipe's scheme."""
    found: dict[str, int | None] = {}
    left = tuple(layers)
    for i, choice in enumerate(request.choices):
        left, theirs = split(left, (choice.layers,))
        found |= {name: i for kind in theirs for name in kind.names}
    return found | {name: None for kind in left for name in kind.names}


def check(request: Request, layers: Sequence[Kind]) -> list[Problem]:
    """Layers that two overrides match, and layers that servers fuse and that would get different schemes or choices."""
    if request.choices:
        return _apart(request, layers)
    return [*_claimed_twice(request, layers), *_unequal(request, layers)] if request.overrides else []


def _apart(request: Request, layers: Sequence[Kind]) -> list[Problem]:
    """Layers that servers fuse, and that a budget would choose for apart."""
    given = choices_of(request, layers)
    return [
        layer_problems.joined_unequal(members, Location(key=("quantize", "choices"), name=names[0]))
        for members, families in layer_problems.unequal(given).items()
        for names in families[:1]
    ]


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
