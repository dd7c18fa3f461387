"""Every window of held-out text continued, greedy."""

from __future__ import annotations

from evals.measure import continuations
from evals.parts.session import Session
from qpack.core.findings import Continuations


def measure(session: Session, tokens: int) -> Continuations:
    """Continue each by `tokens`. Raises EvaluateError."""
    session.setting.tell(f"every window of held-out text continued by {tokens} tokens")
    return continuations.measure(
        base_url=session.server.base_url,
        model=session.server.model,
        windows=session.setting.windows,
        tokens=tokens,
        progress=session.setting.progress,
    )
