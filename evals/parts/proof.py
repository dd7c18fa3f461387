"""The canary: what a client of the published model relies on."""

from __future__ import annotations

from pathlib import Path

from evals.parts.session import Session
from evals.server import canary as probes
from evals.server import first_questions
from evals.server.canary import Promise
from qpack.core.records import Proof


def measure(session: Session, ask: Promise, out: Path) -> Proof:
    """Hold the server to what its manifest promises. Raises EvaluateError."""
    session.setting.tell("the canary: what a client relies on")
    return probes.prove(
        session.setting.tools["canary"],
        ask,
        base_url=session.server.base_url,
        model=session.server.model,
        chat=first_questions.has_chat_template(session.subject.checkpoint),
        out=out,
        log=session.log("canary"),
        timeout=session.setting.timeout,
        progress=session.setting.progress,
    )
