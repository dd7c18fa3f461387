"""What a client relies on, asked of a running server with the openai SDK: `qpack canary`.

`evals.canary` asks the first questions of a build; this asks everything that a manifest promises.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from qpack import worker
from qpack.errors import EvaluateError
from qpack.frozen import Frozen

WORKER = Path(__file__).parent / "workers" / "canary_worker.py"


class Promise(Frozen):
    """What is asked of a server. `max_model_len` in tokens, prompt and answer together."""

    base_url: str
    model: str
    chat: bool
    max_model_len: int
    tools: bool = False
    prefix_caching: bool = True
    drafting: bool = False
    metrics: tuple[str, ...] = ()


class Check(Frozen):
    """One claim, and what became of it."""

    name: str
    claim: str
    outcome: Literal["pass", "fail", "skip"]
    why: str


def prove(
    environment: worker.Interpreter, promise: Promise, *, out: Path, log: Path, progress: worker.Progress
) -> tuple[Check, ...]:
    """Make every check. Raises EvaluateError when the server can't be reached."""
    raw = worker.run(
        environment,
        WORKER,
        promise.model_dump(mode="json"),
        out=out,
        log=log,
        progress=progress,
        timeout=1800,
        error=EvaluateError,
    )
    return tuple(Check.model_validate(check) for check in raw["checks"])
