"""What a client relies on, asked of a running server with the openai SDK and instructor: the canary.

`evals.server.first_questions` asks the first questions of a build; this asks everything that a manifest promises.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from qpack.core.errors import EvaluateError
from qpack.core.frozen import Frozen
from qpack.core.records import Check, Proof
from qpack.runtime import worker

WORKER = Path(__file__).parents[1] / "workers" / "canary_worker.py"


class Promise(Frozen):
    """What is asked of a server. `max_model_len` in tokens, prompt and answer together; `logprobs` is how many it gives
    for a token; of drafted tokens a share of at least `acceptance_floor` has to be accepted (0: at least one).
    """

    max_model_len: int
    tools: bool = False
    prefix_caching: bool = True
    logprobs: int = 20
    drafting: bool = False
    acceptance_floor: float = Field(0.0, ge=0, le=1)
    metrics: tuple[str, ...] = ()


def prove(
    environment: worker.Interpreter,
    promise: Promise,
    *,
    base_url: str,
    model: str,
    chat: bool,
    out: Path,
    log: Path,
    progress: worker.Progress,
    timeout: float = 1800,
    only: tuple[str, ...] = (),
) -> Proof:
    """Make every check, or `only` those named, on a server that nobody else asks meanwhile. `chat` is whether the model
    has a chat template; `timeout` in seconds, for all of them. Raises EvaluateError when the server can't be reached.
    """
    asked = {**promise.model_dump(mode="json"), "base_url": base_url, "model": model, "chat": chat, "only": list(only)}
    call = worker.Call(environment, out, log, timeout, EvaluateError, progress)
    raw = worker.run(WORKER, asked, dict, call)
    return Proof(clients=raw["clients"], checks=tuple(Check.model_validate(check) for check in raw["checks"]))
