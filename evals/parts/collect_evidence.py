"""Everything that is known of one model, from one running server.

Parts are made in the order in which they are given, each kept as soon as it is there. The server is started once, when
the first missing part asks for it; if nothing is missing it isn't started at all. Performance is to come first, on the
fresh server and alone: what the other parts leave behind in its caches would colour it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.parts.session import Session, Setting, Subject
from evals.server import vllm_server
from evals.server.vllm_server import Server
from qpack.core.findings import Continuations, Needle
from qpack.core.frozen import Frozen
from qpack.core.records import Accuracy, Language, Performance, Proof
from qpack.core.speed import Interleaved

if TYPE_CHECKING:
    from qpack.core.store import Entry, Store

Done = Mapping[str, "Entry[Any]"]
"""The parts that are there, by name."""


@dataclass(frozen=True)
class Part:
    """A part to be made: its key and the key's inputs, the results that the server reads from, and what asks for it.
    `make` gets the session, the parts before it, and an empty folder.
    """

    name: str
    key: str
    inputs: Mapping[str, Any]
    uses: Sequence[Entry[Any]]
    make: Callable[[Session, Done, Path], Frozen]


@dataclass(frozen=True)
class Observed:
    """The parts, and how many servers of the subject were started for them: 0 or 1. `interleaved` (with the baseline)
    and `drafting` (with itself without its draft) are None where there is no such rival.
    """

    performance: Entry[Performance]
    language: Entry[Language]
    accuracy: Entry[Accuracy]
    starts: int
    interleaved: Entry[Interleaved] | None = None
    drafting: Entry[Interleaved] | None = None
    proof: Entry[Proof] | None = None
    continuations: Entry[Continuations] | None = None
    needle: Entry[Needle] | None = None

    def parts(self) -> dict[str, Entry[Any]]:
        """The parts by name, in the order in which they are made."""
        return {name: part for name in PARTS if (part := getattr(self, name)) is not None}


PARTS: dict[str, type[Frozen]] = {
    "performance": Performance,
    "interleaved": Interleaved,
    "drafting": Interleaved,
    "proof": Proof,
    "language": Language,
    "continuations": Continuations,
    "needle": Needle,
    "accuracy": Accuracy,
}


def observe(
    subject: Subject,
    parts: Sequence[Part],
    setting: Setting,
    store: Store,
) -> Observed:
    """Get each part from the store, or from the server. Raises EvaluateError; parts that were finished stay."""
    found: dict[str, Entry[Any]] = {}
    with ExitStack() as stack, vllm_server.naming(setting.log):
        up: list[Server] = []

        def session() -> Session:
            if not up:
                setting.tell(f"starting vLLM on {subject.name}")
                context = vllm_server.running(
                    subject.command,
                    model=subject.name,
                    log=setting.log,
                    timeout=setting.start_timeout,
                    progress=setting.progress,
                    port=subject.port,
                )
                up.append(stack.enter_context(context))
            return Session(subject, up[0], setting)

        for part in parts:
            found[part.name] = store.once(
                part.name,
                part.key,
                PARTS[part.name],
                lambda out, part=part: part.make(session(), found, out),  # type: ignore[misc]
                inputs=part.inputs,
                tell=setting.tell,
                uses=part.uses,
            )
    return Observed(**found, starts=len(up))
