"""Interleaved load: the measured server and a reference that is started beside it."""

from __future__ import annotations

from dataclasses import dataclass

from evals.measure import interleave
from evals.measure.eval_specs import InterleavedSpec
from evals.measure.interleave import Target
from evals.server import vllm_server
from evals.server.session import ServedModel, ServedSession
from qpack.core.records import Memory
from qpack.core.speed import Interleaved


@dataclass(frozen=True)
class Reference:
    """The model to load in turn with the measured one, and the memory of its server alone (None: as the other's)."""

    served: ServedModel
    memory: Memory | None


def measure(session: ServedSession, spec: InterleavedSpec, reference: Reference, own: Memory) -> Interleaved:
    """Load both; `own` is the memory of the measured server alone. If both don't fit, the result has the reason and no
    level.
    """
    server, workspace, other = session.server, session.workspace, reference.served
    if (why := interleave.too_large(reference.memory or own, workspace.free_accelerator)) is not None:
        workspace.report(f"no interleaved load with {other.name}: {why}")
        return Interleaved(tool="none", levels=(), apart=why)
    workspace.report(f"starting vLLM on {other.name} too, for the interleaved load")
    log = workspace.log_of("reference")
    with (
        vllm_server.naming(log),
        vllm_server.running(
            other.command, model=other.name, log=log, timeout=workspace.limits.start, progress=workspace.progress
        ) as beside,
    ):
        levels = ", ".join(map(str, spec.load.concurrency))
        workspace.report(f"{spec.rounds} interleaved rounds at concurrency {levels}")
        return interleave.measure(
            workspace,
            spec,
            reference=Target(beside.base_url, beside.model, other.checkpoint),
            subject=Target(server.base_url, server.model, session.tokenizer),
            prompts=session.windows if spec.texts else None,
        )
