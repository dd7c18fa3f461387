"""Collect a model's evidence from one running server.

Parts are made in the given order and stored one by one. The server is started for the first missing part; if none is
missing it isn't started. Performance comes first, on the fresh server: later its caches would hold data of other parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.server import first_questions, vllm_server
from evals.server.client import Endpoint
from evals.server.session import ServedModel, ServedSession, Workspace, serving
from qpack.core.findings import Continuations, CrossChecked, Needle
from qpack.core.frozen import Frozen
from qpack.core.records import Accuracy, Language, Performance, Proof
from qpack.core.speed import Interleaved, ToolLoad

if TYPE_CHECKING:
    from qpack.core.store import Entry, Inputs, Store

Done = Mapping[str, "Entry[Any]"]
"""The parts made so far, by name."""


@dataclass(frozen=True)
class Part:
    """A part to be made: its key and the key's inputs, and the results that the server reads from.
    `make` gets the session, with an empty folder for results, and the parts before it. A stored part that isn't
    `usable` is measured again.
    """

    name: str
    key: str
    inputs: Inputs
    uses: Sequence[Entry[Any]]
    make: Callable[[ServedSession, Done], Frozen]
    usable: Callable[[Frozen], bool] = lambda _: True


@dataclass(frozen=True)
class CollectedEvidence:
    """The parts, and how many servers of the model were started for them: 0 or 1. `interleaved` (the reference is the
    baseline) and `drafting` (the reference is the artifact without its draft) are None without a reference.
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
    cross_check: Entry[CrossChecked] | None = None
    guidellm: Entry[ToolLoad] | None = None
    inference_perf: Entry[ToolLoad] | None = None

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
    "cross_check": CrossChecked,
    "guidellm": ToolLoad,
    "inference_perf": ToolLoad,
    "accuracy": Accuracy,
}


def undisturbed(part: Frozen) -> bool:
    """Whether other work left enough of the machine while the part was measured; True for parts without speed."""
    work = part.latency.other_work if isinstance(part, Performance) else getattr(part, "other_work", None)
    return work is None or not work.disturbs


def collect_evidence(
    served: ServedModel, parts: Sequence[Part], workspace: Workspace, windows: Path, store: Store
) -> CollectedEvidence:
    """Get each part from the store, or measure it. Raises EvaluateError; finished parts stay stored.

    `windows` is the held-out text in tokens. Each part has a folder of its own for results.
    """
    found: dict[str, Entry[Any]] = {}
    with ExitStack() as stack, vllm_server.naming(workspace.log):
        up: list[ServedSession] = []

        def session(out: Path) -> ServedSession:
            if not up:
                up.append(stack.enter_context(_serving(served, workspace, windows)))
            return up[0].within(out)

        for part in parts:
            found[part.name] = store.once(
                part.name,
                part.key,
                PARTS[part.name],
                lambda out, part=part: part.make(session(out), found),  # type: ignore[misc]
                inputs=part.inputs,
                report=workspace.report,
                uses=part.uses,
                usable=part.usable,
            )
    return CollectedEvidence(**found, starts=len(up))


@contextmanager
def _serving(served: ServedModel, workspace: Workspace, windows: Path) -> Iterator[ServedSession]:
    """Start the model's server, and stop it at the end of the block."""
    with serving(served, workspace) as server:
        yield ServedSession(
            endpoint=Endpoint(server.base_url, server.model, first_questions.has_chat_template(served.checkpoint)),
            workspace=workspace,
            tokenizer=served.checkpoint,
            max_model_len=served.max_model_len,
            windows=windows,
            served=served,
            server=server,
        )
