"""Facts hidden in a text as long as the server takes."""

from __future__ import annotations

from evals.measure import needle
from evals.measure.asks import Facts
from evals.parts.session import Session
from evals.server import first_questions
from qpack.core.findings import Needle


def measure(session: Session, ask: Facts) -> Needle:
    """Hide them and ask for them. Raises EvaluateError."""
    subject, setting = session.subject, session.setting
    setting.tell(f"facts hidden in text of {subject.max_model_len:,} tokens")
    return needle.measure(
        base_url=session.server.base_url,
        model=session.server.model,
        chat=first_questions.has_chat_template(subject.checkpoint),
        windows=setting.windows,
        context_tokens=subject.max_model_len,
        hidden=ask.hidden,
        seed=ask.seed,
        timeout=setting.timeout,
        progress=setting.progress,
    )
