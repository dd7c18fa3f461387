"""Job and answer of the worker that scores windows with plain transformers; both sides import them (qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """The `checkpoint` folder, and `windows` of token ids, each scored alone."""

    checkpoint: str
    windows: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Answer:
    """The summed negative log-likelihood (nats) of each window's tokens after the first."""

    tool: str
    nll: tuple[float, ...]
