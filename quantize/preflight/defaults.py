"""Layers that aren't quantized by default, and a table of layer kinds with the scheme of each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quantize.checkpoint import layer_roles
from quantize.checkpoint.layer_groups import split
from quantize.checkpoint.layer_roles import Role
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Request
from quantize.preflight import overrides


def with_kept(request: Request, source: Source) -> Request:
    """The request with patterns for the layers that aren't quantized by default added to its `ignore`. An override that
    matches an output layer quantizes it.
    """
    if request.method == "none":
        return request
    named = [other.layers for other in request.overrides]
    found = [each for each in source.roles if each.role is not Role.OUTPUT or not named or split([each.kind], named)[0]]
    kept = layer_roles.kept_patterns(found, request.ignore)
    return replace(request, ignore=(*request.ignore, *kept), kept=kept)


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
    """Every kind of linear layer of the source, quantized ones first."""
    taken, _ = source.split(request.ignore)
    rows = [
        KindRow(kind.pattern, len(kind.names), kind.shape, part.request.scheme, part.request.group_size, "")
        for part in overrides.apart(request, taken)
        for kind in part.layers
    ]
    rows += [
        KindRow(kind.pattern, len(kind.names), kind.shape, "", None, each.role.reason or "the recipe's `ignore`")
        for each in source.roles
        for kind in split([each.kind], request.ignore)[1]
    ]
    return tuple(rows)
