"""Figures that rest on samples, and what a comparison says of a part of what was measured.

Frozen, and the same after a trip through JSON. `qpack.core.records` has the whole.
"""

from __future__ import annotations

from qpack.core.findings import Tail
from qpack.core.frozen import Frozen


class Interval(Frozen):
    """[low, high] at `confidence` (0.95 is 95 %)."""

    low: float
    high: float
    confidence: float


class Estimate(Frozen):
    """A figure, how many samples it rests on, its interval if it has sampling noise, and how it was computed."""

    value: float
    samples: int
    interval: Interval | None
    method: str


class DomainDifference(Frozen):
    """Artifact against baseline on the held-out text of one domain: the figures of the whole, over its windows alone.
    `tail` bounds what `kl_divergence` leaves out.
    """

    domain: str
    windows: int
    perplexity_baseline: float
    perplexity_artifact: float
    perplexity_ratio: Estimate
    kl_divergence: Estimate
    flip_rate: Estimate
    tail: Tail | None = None


class NeedleDifference(Frozen):
    """Facts found in text as long as the served context: shares of all prompts, and `drop`, baseline minus artifact.
    `no_verdict` says why nothing follows from it; empty when something does.
    """

    baseline: float
    artifact: float
    drop: Estimate
    no_verdict: str = ""
