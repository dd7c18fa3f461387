"""Everything that is known of one model, from one running server.

Parts, each kept as soon as it is there: performance (first questions, latency, memory), interleaved (load in turn with
a rival's server, where there is a rival), proof (the canary; of what is published alone), language (held-out text),
continuations and needle (where they are asked for), accuracy (tasks). The server is started once, when the first
missing part asks for it; if nothing is missing it isn't started at all. Performance comes first, on the fresh server
and alone: what the other parts leave behind in its caches would colour it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from evals import accuracy, canary, continuations, interleave, latency, memory, needle, perplexity, probes, serving
from evals.accuracy import WHOLE, Part
from evals.interleave import Target
from evals.latency import Load
from evals.needle import Hidden
from evals.probes import Promise
from evals.serving import Command, Server
from evals.suite import TaskRequest
from qpack.errors import EvaluateError
from qpack.findings import Continuations, Needle, TextDomain
from qpack.frozen import Frozen
from qpack.results import Accuracy, Language, Memory, Performance, Proof
from qpack.speed import Interleaved
from qpack.store import Entry, Store, key_of
from qpack.variables import server_variables
from qpack.worker import Interpreter, Progress

R = TypeVar("R", bound=Frozen)


@dataclass(frozen=True)
class Subject:
    """The model to look at: what it is served as, its checkpoint folder, how its server is started, what it promises
    (None: it is not published, and promises nothing).
    """

    name: str
    checkpoint: Path
    command: Command
    port: int | None
    max_model_len: int
    promise: Promise | None = None


@dataclass(frozen=True)
class Questions:
    """What is asked of every model, the same of each. Times in seconds, lengths in tokens. With `stop` the tasks are
    asked in looks, until it says that they are enough. `continue_tokens` of 0 continues no window.
    """

    tasks: tuple[TaskRequest, ...]
    seed: int
    windows: Path
    top_k: int
    load: Load
    start_timeout: float
    timeout: float
    stop: Callable[[Accuracy], bool] | None = None
    domains: tuple[TextDomain, ...] = ()
    continue_tokens: int = 0
    needle: Hidden | None = None


@dataclass(frozen=True)
class Rival:
    """A server to be loaded in turn with, what it held when it was alone (None: the same as the subject), in how many
    rounds, and who knows the free bytes of the accelerator. `texts` sends the held-out windows, not random tokens.
    """

    subject: Subject
    memory: Memory | None
    rounds: int
    free_accelerator: Callable[[], int]
    texts: bool = False


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
    questions: Questions,
    *,
    store: Store,
    inputs: Mapping[str, Mapping[str, object]],
    keys: Mapping[str, str],
    vllm: Interpreter,
    lm_eval: Interpreter,
    client: Interpreter,
    log: Path,
    progress: Progress,
    tell: Callable[[str], None],
    rivals: Mapping[str, Rival] | None = None,
) -> Observed:
    """Get each part from the store, or from the server. Raises EvaluateError; parts that were finished stay."""
    waiting = lambda: tell("another qpack is measuring this model; waiting for it")  # noqa: E731
    with ExitStack() as stack, _naming(log):
        up: list[Server] = []

        def server() -> Server:
            if not up:
                tell(f"starting vLLM on {subject.name}")
                context = serving.running(
                    subject.command,
                    model=subject.name,
                    log=log,
                    timeout=questions.start_timeout,
                    progress=progress,
                    port=subject.port,
                )
                up.append(stack.enter_context(context))
            return up[0]

        def ask_tasks(out: Path, part: Part = WHOLE) -> Accuracy:
            return _accuracy(subject, questions, server(), lm_eval, out, part, progress, tell)

        def ask_look(part: Part) -> Accuracy:
            # The key of a part doesn't hold the rule for stopping, so another bound asks nothing twice.
            own = {name: value for name, value in inputs["accuracy"].items() if name != "stop"} | {"part": list(part)}
            make = lambda out: ask_tasks(out, part)  # noqa: E731
            return store.once("accuracy", key_of(own), Accuracy, make, inputs=own, waiting=waiting).result

        def once(part: str, kind: type[R], make: Callable[[Path], R]) -> Entry[R]:
            return store.once(part, keys[part], kind, make, inputs=inputs[part], waiting=waiting)

        performance = once(
            "performance",
            Performance,
            lambda out: _performance(subject, questions, server(), vllm, out, progress, tell),
        )
        own = performance.result.memory
        in_turn = {
            part: once(
                part,
                Interleaved,
                lambda out, rival=rival: _in_turn(  # type: ignore[misc]
                    subject, rival, own, questions, server(), vllm, out, progress, tell
                ),
            )
            for part, rival in (rivals or {}).items()
        }
        proof = None
        if (promise := subject.promise) is not None:
            proof = once(
                "proof",
                Proof,
                lambda out: _proof(subject, promise, questions, server(), client, out, progress, tell),
            )
        language = once("language", Language, lambda out: _language(questions, server(), out, progress, tell))
        going_on, hidden = None, None
        if tokens := questions.continue_tokens:
            going_on = once(
                "continuations", Continuations, lambda _: _continuations(tokens, questions, server(), progress, tell)
            )
        if (ask := questions.needle) is not None:
            hidden = once("needle", Needle, lambda _: _needle(subject, ask, questions, server(), progress, tell))
        tasks = once(
            "accuracy",
            Accuracy,
            lambda out: ask_tasks(out) if questions.stop is None else _in_looks(ask_look, questions.stop, tell),
        )
    rounds = (in_turn.get("interleaved"), in_turn.get("drafting"))
    return Observed(performance, language, tasks, len(up), *rounds, proof, going_on, hidden)


@contextmanager
def _naming(log: Path) -> Iterator[None]:
    """An error while the server is asked names the server's log, unless it has a better one."""
    try:
        yield
    except EvaluateError as error:
        error.log = error.log or log
        raise


def _performance(
    subject: Subject,
    ask: Questions,
    server: Server,
    vllm: Interpreter,
    out: Path,
    progress: Progress,
    tell: Callable[[str], None],
) -> Performance:
    tell(f"vLLM {server.version} is up after {server.start_seconds:.0f} s; first questions")
    chat = canary.has_chat_template(subject.checkpoint)
    answers = canary.measure(base_url=server.base_url, model=server.model, chat=chat)
    idle = memory.resident_bytes(server.pid)
    tell(f"latency and throughput at {_levels(ask.load)}")
    with memory.watch(server.pid, interval=5.0) as peak:
        speed = latency.measure(
            vllm,
            ask.load,
            base_url=server.base_url,
            model=server.model,
            tokenizer=subject.checkpoint,
            seed=ask.seed,
            out=out / "bench",
            log=server.log.with_suffix(".bench.log"),
            timeout=ask.timeout,
            progress=progress,
        )
    log, metrics = server.log.read_text(errors="replace"), memory.scrape(server.base_url)
    held = memory.measure(
        model=subject.checkpoint,
        log=log,
        metrics=metrics,
        resident=idle,
        peak_resident=peak.bytes,
        start_seconds=server.start_seconds,
    )
    shutil.copyfile(server.log, out / "vllm.log")
    ran, version = memory.ran_with(log, metrics), f"vllm {server.version}"
    got = server_variables(os.environ)
    return Performance(server=version, canary=answers, latency=speed, memory=held, ran_with=ran, variables=got)


def _proof(
    subject: Subject,
    promise: Promise,
    ask: Questions,
    server: Server,
    client: Interpreter,
    out: Path,
    progress: Progress,
    tell: Callable[[str], None],
) -> Proof:
    tell("the canary: what a client relies on")
    return probes.prove(
        client,
        promise,
        base_url=server.base_url,
        model=server.model,
        chat=canary.has_chat_template(subject.checkpoint),
        out=out,
        log=server.log.with_suffix(".canary.log"),
        timeout=ask.timeout,
        progress=progress,
    )


def _in_turn(
    subject: Subject,
    rival: Rival,
    own: Memory,
    ask: Questions,
    server: Server,
    vllm: Interpreter,
    out: Path,
    progress: Progress,
    tell: Callable[[str], None],
) -> Interleaved:
    if (apart := interleave.too_large(rival.memory or own, rival.free_accelerator)) is not None:
        tell(f"not loaded in turn with {rival.subject.name}: {apart}")
        return Interleaved(tool="none", levels=(), apart=apart)
    tell(f"starting vLLM on {rival.subject.name} too, to load both in turn")
    log = server.log.with_suffix(".rival.log")
    with (
        _naming(log),
        serving.running(
            rival.subject.command, model=rival.subject.name, log=log, timeout=ask.start_timeout, progress=progress
        ) as other,
    ):
        tell(f"{rival.rounds} rounds at concurrency {', '.join(map(str, ask.load.concurrency))}, in turn")
        return interleave.measure(
            vllm,
            ask.load,
            rival.rounds,
            reference=Target(other.base_url, other.model, rival.subject.checkpoint),
            subject=Target(server.base_url, server.model, subject.checkpoint),
            seed=ask.seed,
            out=out / "bench",
            log=server.log.with_suffix(".turns.log"),
            prompts=ask.windows if rival.texts else None,
            timeout=ask.timeout,
            progress=progress,
        )


def _levels(load: Load) -> str:
    closed = f"concurrency {', '.join(map(str, load.concurrency))}" if load.concurrency else ""
    opened = f"{', '.join(f'{rate:g}' for rate in load.rates)} requests/s" if load.rates else ""
    return " and ".join(part for part in (closed, opened) if part)


def _language(ask: Questions, server: Server, out: Path, progress: Progress, tell: Callable[[str], None]) -> Language:
    tell("perplexity and log-probabilities on held-out text")
    found = perplexity.measure(
        base_url=server.base_url, model=server.model, windows=ask.windows, out=out, top_k=ask.top_k, progress=progress
    )
    return found.model_copy(update={"domains": ask.domains})


def _continuations(
    tokens: int, ask: Questions, server: Server, progress: Progress, tell: Callable[[str], None]
) -> Continuations:
    tell(f"every window of held-out text continued by {tokens} tokens")
    return continuations.measure(
        base_url=server.base_url, model=server.model, windows=ask.windows, tokens=tokens, progress=progress
    )


def _needle(
    subject: Subject, hidden: Hidden, ask: Questions, server: Server, progress: Progress, tell: Callable[[str], None]
) -> Needle:
    tell(f"facts hidden in text of {subject.max_model_len:,} tokens")
    return needle.measure(
        base_url=server.base_url,
        model=server.model,
        chat=canary.has_chat_template(subject.checkpoint),
        windows=ask.windows,
        context_tokens=subject.max_model_len,
        hidden=hidden,
        seed=ask.seed,
        timeout=ask.timeout,
        progress=progress,
    )


def _in_looks(
    ask: Callable[[Part], Accuracy], stop: Callable[[Accuracy], bool], tell: Callable[[str], None]
) -> Accuracy:
    """Part after part, each kept, until what there is decides."""
    from evals import looks

    parts: list[Accuracy] = []
    for part in looks.PARTS:
        parts.append(ask(part))
        whole = looks.merge(parts)
        tell(looks.sentence(whole))
        if stop(whole):
            break
    return whole


def _accuracy(
    subject: Subject,
    ask: Questions,
    server: Server,
    lm_eval: Interpreter,
    out: Path,
    part: Part,
    progress: Progress,
    tell: Callable[[str], None],
) -> Accuracy:
    tell(f"lm-eval on {', '.join(task.name for task in ask.tasks)}")
    return accuracy.measure(
        lm_eval,
        base_url=server.base_url,
        model=server.model,
        tokenizer=subject.checkpoint,
        max_length=subject.max_model_len,
        tasks=ask.tasks,
        seed=ask.seed,
        out=out / "lm-eval",
        log=server.log.with_suffix(".lm-eval.log"),
        part=part,
        timeout=ask.timeout,
        progress=progress,
    )
