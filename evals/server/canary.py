"""The canary: checks of a running server with the openai SDK and instructor, for all that a manifest promises."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pydantic import Field

from evals.server.client import Endpoint
from evals.server.session import Workspace
from evals.workers import canary_job
from qpack.core.frozen import Frozen
from qpack.core.records import Check, Proof
from qpack.runtime import worker

WORKER = Path(__file__).parents[1] / "workers" / "canary_worker.py"


class Promise(Frozen):
    """What a manifest promises. `max_model_len` in tokens, prompt and answer together; `logprobs` per token; of drafted
    tokens at least a share of `acceptance_floor` is accepted (0: at least one).
    """

    max_model_len: int
    tools: bool = False
    images: bool = False
    thinking: bool = False
    prefix_caching: bool = True
    logprobs: int = 20
    drafting: bool = False
    acceptance_floor: float = Field(0.0, ge=0, le=1)
    metrics: tuple[str, ...] = ()


def prove(workspace: Workspace, endpoint: Endpoint, promise: Promise, only: tuple[str, ...] = ()) -> Proof:
    """Run all checks, or `only` those named, on a server without other load.

    Raises EvaluateError when the server can't be reached.
    """
    workspace.report("canary: checks of what clients rely on")
    job = canary_job.Job(**promise.model_dump(), **asdict(endpoint), only=only)
    answer = worker.run(WORKER, job, canary_job.Answer, workspace.call("canary", "canary"))
    return Proof(clients=answer.clients, checks=tuple(Check(**asdict(check)) for check in answer.checks))
