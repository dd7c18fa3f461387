"""Perplexity and log-probabilities on held-out text."""

from __future__ import annotations

from pathlib import Path

from evals.measure import perplexity
from evals.measure.asks import Text
from evals.parts.session import Session
from qpack.core.records import Language


def measure(session: Session, ask: Text, out: Path) -> Language:
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
