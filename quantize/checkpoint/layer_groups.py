"""A model's linear layers by kind: a mixture of experts has tens of thousands of layers, and a dozen kinds.

Whatever follows from name and shape is decided once a kind. Patterns may name a number, so they are held against every
name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.patterns import compiled

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Kind:
    """Layers of one shape ([out, in]) whose names differ in numbers alone."""

    shape: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]


def kinds(linears: Iterable[Tensor]) -> tuple[Kind, ...]:
    """Linear layers by kind, in the order in which they come."""
    found: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for tensor in linears:
        name = tensor.name.removesuffix(".weight")
        found.setdefault((_NUMBER.sub("0", name), tensor.shape), []).append(name)
    return tuple(Kind(shape, tuple(names)) for (_, shape), names in found.items())


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether one of `ignore`'s patterns leaves a layer alone: its name, the end of it, or `re:` and a regular
    expression that matches from its start. Raises PatternError for one that isn't any (`preflight.bad_patterns`).
    """
    plain = [pattern for pattern in patterns if not pattern.startswith("re:")]
    names, ends = frozenset(plain), tuple("." + pattern for pattern in plain)
    expressions = [compiled(pattern[3:]) for pattern in patterns if pattern.startswith("re:")]

    def left_alone(name: str) -> bool:
        return name in names or name.endswith(ends) or any(match(name) for match in expressions)

    return left_alone


def split(found: Iterable[Kind], patterns: Sequence[str]) -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
    """Kinds as the patterns divide them: layers to quantize, and layers that are left alone."""
    left_alone = matcher(patterns)
    taken, left = [], []
    for kind in found:
        out = [name for name in kind.names if left_alone(name)]
        if len(out) == len(kind.names):
            left.append(kind)
        elif not out:
            taken.append(kind)
        else:
            without = frozenset(out)
            left.append(Kind(kind.shape, tuple(out)))
            taken.append(Kind(kind.shape, tuple(name for name in kind.names if name not in without)))
    return tuple(taken), tuple(left)
