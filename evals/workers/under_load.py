"""Whether a greedy answer given beside others is the one given alone. Standard library alone.

Kernels add in another order in a larger batch, so two nearly equal tokens may change places, and all that follows is
another text. So only the first place where the answers part is judged: there both have read the same, and the token
taken under load has to be about as probable as the one taken alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Optional

TIE = 1.0
"""Nats by which a token under load may be less probable than the one alone. Logits near 20 are stored in bfloat16 in
steps of 0.125, and the noise of several layers comes on top; a token of a broken kernel is many nats away.
"""


def departure(
    alone: Sequence[str], listed: Sequence[Mapping[str, float]], loaded: Sequence[str]
) -> Optional[tuple[int, float]]:
    """(position, gap in nats) of the first token under load that differs by more than a tie from the one alone; None
    where there is none. `listed` are the log-probabilities of the most probable tokens at each position, alone. For a
    token that isn't listed the gap is at least that of the last listed one.
    """
    for at, (mine, other) in enumerate(zip(alone, loaded, strict=False)):
        if mine == other:
            continue
        top = listed[at]
        gap = max(top.values()) - top.get(other, min(top.values()))
        return (at, gap) if gap > TIE else None
    return None
