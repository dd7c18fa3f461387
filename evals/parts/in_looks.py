"""The accuracy tasks in growing parts, until what there is decides the gates."""

from __future__ import annotations

from collections.abc import Callable

from evals.gates import looks
from evals.measure.accuracy import Part
from qpack.core.records import Accuracy


def measure(ask: Callable[[Part], Accuracy], stop: Callable[[Accuracy], bool], tell: Callable[[str], None]) -> Accuracy:
    """Part after part; `ask` answers one, and keeps it."""
    parts: list[Accuracy] = []
    for part in looks.PARTS:
        parts.append(ask(part))
        whole = looks.merge(parts)
        tell(looks.sentence(whole))
        if stop(whole):
            break
    return whole
