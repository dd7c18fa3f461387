"""The accuracy tasks: all items, or a share of each task's."""

from __future__ import annotations

from pathlib import Path

from evals.measure import accuracy
from evals.measure.accuracy import WHOLE, Part
from evals.measure.asks import Tasks
from evals.parts.session import Session
from qpack.core.records import Accuracy


def measure(session: Session, ask: Tasks, out: Path, part: Part = WHOLE) -> Accuracy:
    """Run them through lm-eval. Raises EvaluateError."""
    subject, setting = session.subject, session.setting
    setting.tell(f"lm-eval on {', '.join(task.name for task in ask.tasks)}")
    return accuracy.measure(
        setting.tools["lm-eval"],
        base_url=session.server.base_url,
        model=session.server.model,
        tokenizer=subject.checkpoint,
        max_length=subject.max_model_len,
        tasks=ask.tasks,
        seed=ask.seed,
        out=out / "lm-eval",
        log=session.log("lm-eval"),
        part=part,
        timeout=setting.timeout,
        progress=setting.progress,
    )
