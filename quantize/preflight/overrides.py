"""Mixed precision by pattern: which layers get which scheme, and what can't go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from quantize.checkpoint import layer_names
from quantize.checkpoint.layer_groups import Kind, split
from quantize.engines.protocol import Complaint, Request


@dataclass(frozen=True)
class Part:
    """Layers that get one scheme, and a request for that scheme alone. `override` is its place in the recipe's list."""

    request: Request
    layers: tuple[Kind, ...]
    override: int | None = None

    def at_its_key(self, complaints: Sequence[Complaint]) -> list[Complaint]:
        """Complaints where the recipe asks for this part."""
        if self.override is None:
            return list(complaints)
        place = ("quantize", "overrides", self.override)
        return [replace(found, at=(*place, *found.at[1:])) if found.at[0] == "quantize" else found
                for found in complaints]  # fmt: skip


def apart(request: Request, layers: Sequence[Kind]) -> list[Part]:
    """The layers by the scheme that they get: the recipe's own first, if a layer is left to it, then each override.

    A layer goes to the first override that names it.
    """
    left, parts = tuple(layers), []
    for i, other in enumerate(request.overrides):
        left, theirs = split(left, (other.layers,))
        alone = replace(request, scheme=other.scheme, group_size=other.group_size, overrides=())
        parts.append(Part(alone, theirs, i))
    return [Part(replace(request, overrides=()), left), *parts] if left or not parts else parts


def check(request: Request, layers: Sequence[Kind]) -> list[Complaint]:
    """Layers that two overrides name, and layers that servers join and that would get unequal schemes."""
    return [*_claimed_twice(request, layers), *_unequal(request, layers)] if request.overrides else []


def _claimed_twice(request: Request, layers: Sequence[Kind]) -> list[Complaint]:
    complaints = []
    for i, other in enumerate(request.overrides):
        _, theirs = split(layers, (other.layers,))
        for j, earlier in enumerate(request.overrides[:i]):
            _, both = split(theirs, (earlier.layers,))
            if both:
                what = f"{both[0].name}: '{other.layers}' and '{earlier.layers}' (overrides {i} and {j}) both name it."
                at = ("quantize", "overrides", i, "layers")
                complaints.append(Complaint(what, at, "Make the patterns exclude one another."))
    return complaints


def _unequal(request: Request, layers: Sequence[Kind]) -> list[Complaint]:
    given = {name: part for part in apart(request, layers) for kind in part.layers for name in kind.names}
    complaints: dict[tuple[tuple[str, ...], int], Complaint] = {}
    for (_, members), names in layer_names.families(given).items():
        schemes = {(given[name].request.scheme, given[name].request.group_size) for name in names}
        if len(schemes) < 2:
            continue
        named = next(part.override for name in names if (part := given[name]).override is not None)
        what = f"servers join {', '.join(members)} into one layer, and they would get unequal schemes ({names[0]})."
        complaint = Complaint(what, ("quantize", "overrides", named or 0, "layers"), "Name all of them, or none.")
        complaints.setdefault((members, named or 0), complaint)
    return list(complaints.values())
