"""Runs one job in an engine's environment: events in, an answer out, and no process left behind.

The worker's side is `workerlib/qpack_worker.py`. Jobs and answers are dataclasses, declared in a module beside the
worker that both sides import (`workerlib/qpack_protocol.py`). An answer is checked: the engine may have crashed.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from qpack.core.errors import EnvironmentFailed, QpackError
from qpack.core.problems import DISK_FULL, OUT_OF_MEMORY, Code, Problem
from qpack.runtime import memory_limits, process
from qpack.runtime.installed import NO_INTERPRETER
from qpack.runtime.memory_limits import Place, Watch
from qpack.runtime.variables import Group, thread_waiting
from qpack.runtime.workerlib import qpack_protocol
from qpack.runtime.workerlib.qpack_protocol import Failure, Mismatch

A = TypeVar("A")
_WORKER_ANSWER = Code("worker-answer", "The answer of a worker doesn't fit what was asked.")
_WORKER_FAILED = Code("worker-failed", "An engine reported an error.")
_WORKER_KILLED = Code("worker-killed", "A worker was killed, and no sign says that memory ran out.")
NO_RESULT = Code("no-result", "A worker or a job ended without a result.")
_TIMED_OUT = Code("timed-out", "A worker didn't finish in time.")

T = TypeVar("T")

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what); a total of 0 means that nobody knows."""

_LONGEST_EVENT = 1 << 20  # bytes; `qpack_worker.fail` sends less


@dataclass(frozen=True)
class MemoryHints:
    """For a worker that runs out of memory: recipe keys to change, by whose memory it was, and what the next run
    resumes from.
    """

    problems: Callable[[Place], tuple[Problem, ...]] = lambda _: ()
    resumption: str = ""


_RUN_SCRIPT = Path(__file__).parent / "workerlib" / "run_script.py"


class Interpreter(Protocol):
    """An environment in which a worker runs."""

    @property
    def name(self) -> str:
        """The environment's name."""

    @property
    def python(self) -> Path:
        """Its interpreter."""

    @property
    def variables(self) -> Mapping[str, str]:
        """Environment variables that are set for the engine."""

    @property
    def inherits(self) -> Sequence[Group]:
        """Which of qpack's own variables it gets."""


def silent(_done: int, _total: int, _what: str) -> None:
    """No progress."""


@dataclass(frozen=True)
class Call:
    """Where a worker runs, for how long, and how it reports.

    `timeout` is in seconds, over the whole job. `error` is what is raised when the worker fails, with `hints` when it
    ran out of memory. `unreported` is raised instead when it ended without a report, as one whose packages can't be
    imported does; `error`, if it is None.
    """

    environment: Interpreter
    out: Path
    log: Path
    timeout: float
    error: type[QpackError]
    progress: Progress = silent
    hints: MemoryHints = MemoryHints()
    unreported: type[QpackError] | None = None


@dataclass(frozen=True)
class _Ended:
    """How a worker ended without an answer. `begin` is where its own lines begin in the log, in bytes."""

    name: str
    code: int
    failure: Failure | None
    watch: Watch
    begin: int


def run(script: Path, job: object, answer: type[A], call: Call) -> A:
    """Run `script` with `job`, a dataclass, and return its answer.

    Raises the call's error: with the worker's own message when it fails, with the end of its log when it dies without
    one, with the field when its answer doesn't fit. Raises EnvironmentFailed when the disk is full or the interpreter
    can't be started.
    """
    call.out.mkdir(parents=True, exist_ok=True)
    job_file, result_file = call.out / "job.json", call.out / "result.json"
    result_file.unlink(missing_ok=True)  # of an earlier run, whose answer didn't fit
    qpack_protocol.write_order(job_file, str(call.out), job)
    read, write = os.pipe()
    failure: Failure | None = None
    watch = Watch()
    # The log may have lines of an earlier run.
    begin = call.log.stat().st_size if call.log.exists() else 0
    variables = {**thread_waiting(os.environ), **call.environment.variables, "QPACK_EVENTS_FD": str(write)}
    command = [*process.isolated(call.environment.python), "-u", str(_RUN_SCRIPT), str(script), str(job_file)]
    inherit = call.environment.inherits
    try:
        running = process.start(
            command, log=call.log, environment=variables, inherit=inherit, cwd=call.out, pass_fds=(write,)
        )
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    deadline = time.monotonic() + call.timeout
    with running, os.fdopen(read, "rb", buffering=0) as events:
        try:
            for event in _events(events.fileno(), deadline, lambda: watch.look(running.pid)):
                if isinstance(event, Failure):
                    failure = event
                else:
                    call.progress(event.done, event.total, event.what)
        except Mismatch as error:
            raise _unreadable(script, "an event", error, call) from error
        if time.monotonic() >= deadline:
            raise call.error(
                _TIMED_OUT,
                f"{script.stem} was stopped: it did not finish within {call.timeout:.0f} s",
                hint="Raise limits.stage_minutes in the recipe, or check the log for what it waits for.",
                log=call.log,
            )
        code = running.wait()
    if code != 0 or not result_file.exists():
        raise _failed(_Ended(script.stem, code, failure, watch, begin), call)
    try:
        found = qpack_protocol.read(result_file, answer)
    except Mismatch as error:
        raise _unreadable(script, "its answer", error, call) from error
    result_file.unlink()
    job_file.unlink()
    return found


def paired(asked: Sequence[T], answers: Sequence[A], error: type[QpackError]) -> list[tuple[T, A]]:
    """What was asked for, each with its answer. Raises `error` where a worker gave another number of them."""
    if len(asked) != len(answers):
        raise error(
            _WORKER_ANSWER,
            f"{len(asked)} answers were asked for, and the worker gave {len(answers)}",
            hint="Run the same command again. If it happens again, it is a bug: please report it with the log.",
        )
    return list(zip(asked, answers, strict=True))


def _events(descriptor: int, deadline: float, look: Callable[[], None]) -> Iterator[qpack_protocol.Progress | Failure]:
    """Yield events until every writer has closed the pipe or time is up; `look` is called about once a second."""
    pending, next_look = b"", 0.0
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            ready = selector.select(min(left, 1.0))
            if time.monotonic() >= next_look:
                look()
                next_look = time.monotonic() + 1.0
            if not ready:
                continue
            chunk = os.read(descriptor, 65536)
            if not chunk:
                return
            *lines, pending = (pending + chunk).split(b"\n")
            if len(pending) > _LONGEST_EVENT:
                raise Mismatch(f"longer than {_LONGEST_EVENT} bytes")
            yield from map(qpack_protocol.event, lines)


def _unreadable(script: Path, what: str, error: Mismatch, call: Call) -> QpackError:
    """An answer or an event that isn't of its type: the worker was ended half way, or its engine wrote it."""
    return call.error(
        _WORKER_ANSWER,
        f"{script.stem}: {what} doesn't fit: {error}",
        hint="Run the same command again. If it happens again, it is a bug: please report it with the log.",
        log=call.log,
    )


def _failed(ended: _Ended, call: Call) -> QpackError:
    """The error of a worker that gave no answer."""
    name, event, log, error = ended.name, ended.failure, call.log, call.error
    if event is not None and event.kind == "disk_full":
        return EnvironmentFailed(
            DISK_FULL,
            f"{name}: no space left on the disk",
            hint="Free some space (`qpack doctor` shows how much is free, and where) and run the same command again.",
            log=log,
        )
    said = [event.what, *event.causes] if event is not None else tail(log, begin=ended.begin).splitlines()
    place = memory_limits.ran_out(said)
    why = "" if place or ended.code != -signal.SIGKILL else ended.watch.killed()
    if place or why:
        words = next((line.strip() for line in said if memory_limits.ran_out([line])), why)
        turn = call.hints.problems(place or "host")
        hints = ("" if place == "gpu" else _sentence(ended.watch.took()),
                 call.hints.resumption and f"{call.hints.resumption}.",
                 "" if turn else "Use a machine with more memory, or give it more.")  # fmt: skip
        return error(
            OUT_OF_MEMORY,
            f"{name} ran out of {'GPU' if place == 'gpu' else 'host'} memory: {words}",
            hint=" ".join(filter(None, hints)),
            log=log,
            problems=turn,
        )
    if event is not None:
        return error(_WORKER_FAILED, event.what, hint=event.hint, log=log)
    if ended.code == -signal.SIGKILL:
        return error(
            _WORKER_KILLED,
            f"{name} was killed (SIGKILL)",
            hint=f"No sign that memory ran out: {ended.watch.took()}. Check `dmesg`, and what else may kill it.",
            log=log,
        )
    if ended.code == 127:
        return EnvironmentFailed(
            NO_INTERPRETER,
            f"the interpreter of the environment '{call.environment.name}' can't be started",
            hint=f"Run `qpack envs build {call.environment.name}`.",
            log=log,
        )
    how = f"was killed by signal {-ended.code}" if ended.code < 0 else f"ended with exit code {ended.code}"
    said_nothing = call.unreported or error
    return said_nothing(
        NO_RESULT, f"{name} {how} and gave no result. Its last lines:\n{tail(log, begin=ended.begin)}", log=log
    )


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}." if words else ""


def tail(log: Path, lines: int = 12, begin: int = 0) -> str:
    """The end of a log, indented, for an error message; nothing of what is before the byte `begin`."""
    try:
        with log.open(errors="replace") as file:
            file.seek(begin)
            return "\n".join(f"    {line.rstrip()[:300]}" for line in deque(file, lines))
    except OSError:
        return ""
