"""Perplexity and log-probabilities on held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evals import perplexity
from evals.measure.session import Session
from qpack.findings import TextDomain
from qpack.results import Language


@dataclass(frozen=True)
class Ask:
    """How many log-probabilities of each position are kept, and which windows belong to which text."""

    top_k: int
    domains: tuple[TextDomain, ...]


def measure(session: Session, ask: Ask, out: Path) -> Language:
    """Ask for every window. Raises EvaluateError."""
    session.setting.tell("perplexity and log-probabilities on held-out text")
    found = perplexity.measure(
        base_url=session.server.base_url,
        model=session.server.model,
        windows=session.setting.windows,
        out=out,
        top_k=ask.top_k,
        progress=session.setting.progress,
    )
    return found.model_copy(update={"domains": ask.domains})
