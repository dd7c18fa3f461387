"""A model's linear layers by kind: a mixture of experts has tens of thousands of layers, but a dozen kinds.

Decisions by name and shape are made once per kind. Patterns may contain numbers, so they are matched with every name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.patterns import compiled

# Of a layer or an expert: `layers.0.`, not `fc1`.
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class Kind:
    """Layers of one shape ([out, in]) whose names differ only in numbers."""

    shape: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    @property
    def pattern(self) -> str:
        """The name that they share, with `*` for the numbers of layers and experts."""
        return _NUMBER.sub("*", self.names[0])


def kinds(linears: Iterable[Tensor]) -> tuple[Kind, ...]:
    """Linear layers by kind, in order."""
    found: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for tensor in linears:
        name = tensor.name.removesuffix(".weight")
        found.setdefault((_NUMBER.sub("0", name), tensor.shape), []).append(name)
    return tuple(Kind(shape, tuple(names)) for (_, shape), names in found.items())


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a pattern of `ignore` matches a layer: its name, the end of it, or `re:` and a regular expression that
    matches from its start. Raises PatternError for an invalid one (`preflight.bad_patterns`).
    """
    plain = [pattern for pattern in patterns if not pattern.startswith("re:")]
    names, ends = frozenset(plain), tuple("." + pattern for pattern in plain)
    expressions = [compiled(pattern[3:]) for pattern in patterns if pattern.startswith("re:")]

    def left_alone(name: str) -> bool:
        return name in names or name.endswith(ends) or any(match(name) for match in expressions)

    return left_alone


def split(found: Iterable[Kind], patterns: Sequence[str]) -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
    """Kinds split by the patterns: layers to quantize, and ignored layers."""
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
