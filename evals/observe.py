"""Everything that is known of one model, from one running server.

Three parts, each kept as soon as it is there: performance (canary, latency, memory), language (held-out text), accuracy
(tasks). The server is started once, when the first missing part asks for it; if nothing is missing it isn't started at
all. Performance comes first, on the fresh server: what the other parts leave behind in its caches would colour it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from evals import accuracy, canary, latency, memory, perplexity, serving
from evals.accuracy import WHOLE, Part
from evals.latency import Load
from evals.serving import Command, Server
from evals.suite import TaskRequest
from qpack.errors import EvaluateError
from qpack.results import Accuracy, Language, Performance
from qpack.store import Entry, Store, key_of
from qpack.worker import Interpreter, Progress


@dataclass(frozen=True)
class Subject:
    """The model to look at: what it is served as, its checkpoint folder, and how its server is started."""

    name: str
    checkpoint: Path
    command: Command
    port: int | None
    max_model_len: int


@dataclass(frozen=True)
class Questions:
    """What is asked of every model, the same of each. Times in seconds, lengths in tokens. With `stop` the tasks are
    asked in looks, until it says that they are enough.
    """

    tasks: tuple[TaskRequest, ...]
    seed: int
    windows: Path
    top_k: int
    load: Load
    start_timeout: float
    timeout: float
    stop: Callable[[Accuracy], bool] | None = None


@dataclass(frozen=True)
class Observed:
    """The three parts, and how many servers were started for them: 0 or 1."""

    performance: Entry[Performance]
    language: Entry[Language]
    accuracy: Entry[Accuracy]
    starts: int


PARTS: dict[str, type[Performance] | type[Language] | type[Accuracy]] = {
    "performance": Performance,
    "language": Language,
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
    log: Path,
    progress: Progress,
    tell: Callable[[str], None],
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

        performance = store.once(
            "performance",
            keys["performance"],
            Performance,
            lambda out: _performance(subject, questions, server(), vllm, out, progress, tell),
            inputs=inputs["performance"],
            waiting=waiting,
        )
        language = store.once(
            "language",
            keys["language"],
            Language,
            lambda out: _language(questions, server(), out, progress, tell),
            inputs=inputs["language"],
            waiting=waiting,
        )
        tasks = store.once(
            "accuracy",
            keys["accuracy"],
            Accuracy,
            lambda out: ask_tasks(out) if questions.stop is None else _in_looks(ask_look, questions.stop, tell),
            inputs=inputs["accuracy"],
            waiting=waiting,
        )
    return Observed(performance, language, tasks, len(up))


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
    held = memory.measure(
        model=subject.checkpoint,
        log=server.log.read_text(errors="replace"),
        metrics=memory.scrape(server.base_url),
        resident=idle,
        peak_resident=peak.bytes,
        start_seconds=server.start_seconds,
    )
    shutil.copyfile(server.log, out / "vllm.log")
    return Performance(server=f"vllm {server.version}", canary=answers, latency=speed, memory=held)


def _levels(load: Load) -> str:
    closed = f"concurrency {', '.join(map(str, load.concurrency))}" if load.concurrency else ""
    opened = f"{', '.join(f'{rate:g}' for rate in load.rates)} requests/s" if load.rates else ""
    return " and ".join(part for part in (closed, opened) if part)


def _language(ask: Questions, server: Server, out: Path, progress: Progress, tell: Callable[[str], None]) -> Language:
    tell("perplexity and log-probabilities on held-out text")
    return perplexity.measure(
        base_url=server.base_url, model=server.model, windows=ask.windows, out=out, top_k=ask.top_k, progress=progress
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
