"""Layers that aren't quantized by default, and a table of layer kinds with the scheme of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quantize.checkpoint import layer_names, layer_roles
from quantize.checkpoint.layer_groups import Kind, split
from quantize.checkpoint.layer_roles import LayerRole, Role
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Request
from quantize.preflight import overrides, preflight, stored
from quantize.schemes import kernels
from quantize.schemes.schemes import SCHEMES

# The largest share of weights that is left alone for its shape.
_SMALL = 0.1


def with_kept(request: Request, source: Source) -> Request:
    """The request with patterns for the layers that aren't quantized by default added to its `ignore`. An override that
    matches an output layer quantizes it.
    """
    if request.method == "none":
        return request
    named = [*(other.layers for other in request.overrides), *(choice.layers for choice in request.choices)]
    found = [each for each in source.roles if each.role is not Role.OUTPUT or not named or split([each.kind], named)[0]]
    kept = layer_roles.kept_patterns(found, request.ignore)
    kept += layer_roles.draft_patterns(source.tensors, source.config)
    made = replace(request, ignore=(*request.ignore, *kept), kept=kept)
    odd = _odd_shapes(made, source)
    return replace(made, ignore=(*made.ignore, *odd), kept=(*kept, *odd))


def _odd_shapes(request: Request, source: Source) -> tuple[str, ...]:
    """Patterns for layers that the group size doesn't divide or no kernel takes, with those that servers join them
    with; none if they hold more than a small share of the weights: then the recipe asks for the wrong thing.
    """
    taken = source.split(request.ignore)[0]
    odd: set[str] = set()
    for part in overrides.by_scheme(request, taken):
        asked = part.request
        if request.target not in SCHEMES[asked.scheme].kernels:
            return ()
        for shape, alike in preflight.shapes(source, part.layers, request.tensor_parallel).items():
            fits = kernels.fit(asked.scheme, asked.group_size, shape, request.target).kernel is not None
            if not fits or (asked.group_size is not None and shape.whole_columns % asked.group_size):
                odd |= {name for kind in alike for name in kind.names}
    if not odd:
        return ()
    for family in layer_names.families(name for kind in taken for name in kind.names).values():
        odd |= set(family) if odd & set(family) else set()
    roles = [LayerRole(Kind(k.shape, (n,)), Role.ODD if n in odd else Role.LINEAR) for k in taken for n in k.names]
    weights = [math.prod(each.kind.shape) for each in roles if each.role is Role.ODD]
    if sum(weights) > _SMALL * sum(math.prod(kind.shape) * len(kind.names) for kind in taken):
        return ()
    return layer_roles.kept_patterns(roles, request.ignore)


@dataclass(frozen=True)
class KindRow:
    """A line of the table: layers of one kind, with `*` for their numbers; `shape` is [out, in]. `scheme` is empty if
    they aren't quantized, and `reason` says why.
    """

    name: str
    count: int
    shape: tuple[int, ...]
    scheme: str
    group_size: int | None
    reason: str


def table(request: Request, source: Source) -> tuple[KindRow, ...]:
    """Every kind of linear layer of the source, quantized ones first. Of a quantized one that is released as it
    is, what each is stored in.
    """
    if parts := stored.own(request, source):
        return _stored_table(parts, source)
    taken, _ = source.split(request.ignore)
    rows = (
        _chosen_later(request, taken)
        if request.choices
        else [
            KindRow(kind.pattern, len(kind.names), kind.shape, part.request.scheme, part.request.group_size, "")
            for part in overrides.by_scheme(request, taken)
            for kind in part.layers
        ]
    )
    rows += [
        KindRow(kind.pattern, len(kind.names), kind.shape, "", None, _reason(request, each.role, kind))
        for each in source.roles
        for kind in split([each.kind], request.ignore)[1]
    ]
    return tuple(rows)


def _chosen_later(request: Request, taken: Sequence[Kind]) -> list[KindRow]:
    """A line for each kind and choice, with every scheme that the budget may give it."""
    rows, left = [], tuple(taken)
    for choice in (*request.choices, None):
        left, theirs = split(left, (choice.layers,)) if choice is not None else ((), left)
        scheme = " or ".join(choice.schemes) if choice is not None else request.scheme
        size = choice.group_size if choice is not None else request.group_size
        rows += [KindRow(kind.pattern, len(kind.names), kind.shape, scheme, size, "") for kind in theirs]
    return rows


def _stored_table(parts: Sequence[overrides.Part], source: Source) -> tuple[KindRow, ...]:
    rows = [
        KindRow(kind.pattern, len(kind.names), kind.shape, part.request.scheme, part.request.group_size, "")
        for part in parts
        for kind in part.layers
    ]
    packed = {name for part in parts for kind in part.layers for name in kind.names}
    for kind in source.kinds:
        if names := tuple(name for name in kind.names if name not in packed):
            left = Kind(kind.shape, names)
            rows.append(KindRow(left.pattern, len(names), kind.shape, "", None, "stored unquantized"))
    return tuple(rows)


def _reason(request: Request, role: Role, kind: Kind) -> str:
    if role.reason:
        return role.reason
    return "the recipe's `ignore`" if not split([kind], request.own_ignore)[0] else Role.ODD.reason
