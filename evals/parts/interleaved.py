"""Load on two servers in turn: the subject's, and another one that is started beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evals.measure import interleave
from evals.measure.asks import InTurn
from evals.measure.interleave import Target
from evals.parts.session import Session, Subject
from evals.server import vllm_server
from qpack.core.records import Memory
from qpack.core.speed import Interleaved


@dataclass(frozen=True)
class Rival:
    """A server to be loaded in turn with, what it held when it was alone (None: the same as the subject), and who
    knows the free bytes of the accelerator.
    """

    subject: Subject
    memory: Memory | None
    free_accelerator: Callable[[], int]


def measure(session: Session, ask: InTurn, rival: Rival, own: Memory, out: Path) -> Interleaved:
    """Load both; `own` is what the subject held alone. Where both don't fit, the result says so, and has no level."""
    server, setting = session.server, session.setting
    if (apart := interleave.too_large(rival.memory or own, rival.free_accelerator)) is not None:
        setting.tell(f"not loaded in turn with {rival.subject.name}: {apart}")
        return Interleaved(tool="none", levels=(), apart=apart)
    setting.tell(f"starting vLLM on {rival.subject.name} too, to load both in turn")
    log = session.log("rival")
    with (
        vllm_server.naming(log),
        vllm_server.running(
            rival.subject.command,
            model=rival.subject.name,
            log=log,
            timeout=setting.start_timeout,
            progress=setting.progress,
        ) as other,
    ):
        setting.tell(f"{ask.rounds} rounds at concurrency {', '.join(map(str, ask.load.concurrency))}, in turn")
        return interleave.measure(
            setting.tools["vllm"],
            ask.load,
            ask.rounds,
            reference=Target(other.base_url, other.model, rival.subject.checkpoint),
            subject=Target(server.base_url, server.model, session.subject.checkpoint),
            seed=ask.seed,
            out=out / "bench",
            log=session.log("turns"),
            prompts=setting.windows if ask.texts else None,
            timeout=setting.timeout,
            progress=setting.progress,
        )
