"""Runs one job in an engine's environment: events in, a result out, and no process left behind.

The worker's side is `workerlib/qpack_worker.py`. A job is a JSON object; its `out` is the folder to write into.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qpack.core.errors import EnvironmentFailed, Problem, QpackError
from qpack.runtime import memory_limits, process
from qpack.runtime.memory_limits import Place, Watch
from qpack.runtime.variables import Group

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what); a total of 0 means that nobody knows."""


@dataclass(frozen=True)
class Relief:
    """For a worker that ran out of memory: what may be turned, and where; and in words where it begins again."""

    knobs: Callable[[Place], tuple[Problem, ...]] = lambda _: ()
    after: str = ""


_RUN_SCRIPT = Path(__file__).parent / "workerlib" / "run_script.py"


class Interpreter(Protocol):
    """What a worker needs of an environment."""

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


def run(
    environment: Interpreter,
    script: Path,
    job: Mapping[str, Any],
    *,
    out: Path,
    log: Path,
    progress: Progress,
    timeout: float,
    error: type[QpackError],
    relief: Relief = Relief(),
) -> dict[str, Any]:
    """Run `script` with `job` and return what it finished with.

    `timeout` is in seconds, over the whole job. Raises `error` with the worker's own words when it fails, with `relief`
    when it ran out of memory, with the end of its log when it dies without a word, and EnvironmentFailed when the disk
    is full or the interpreter can't be started.
    """
    out.mkdir(parents=True, exist_ok=True)
    job_file = out / "job.json"
    job_file.write_text(json.dumps({**job, "out": str(out)}, indent=1))
    read, write = os.pipe()
    failure: dict[str, Any] | None = None
    watch = Watch()
    # The log may hold an earlier run, whose words aren't this one's.
    begin = log.stat().st_size if log.exists() else 0
    variables = {**environment.variables, "QPACK_EVENTS_FD": str(write)}
    command = [*process.isolated(environment.python), "-u", str(_RUN_SCRIPT), str(script), str(job_file)]
    try:
        running = process.start(
            command, log=log, environment=variables, inherit=environment.inherits, cwd=out, pass_fds=(write,)
        )
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    deadline = time.monotonic() + timeout
    with running, os.fdopen(read, "rb", buffering=0) as events:
        for event in _events(events.fileno(), deadline, lambda: watch.look(running.pid)):
            if event["event"] == "progress":
                progress(event["done"], event["total"], event["what"])
            elif event["event"] == "error":
                failure = event
        if time.monotonic() >= deadline:
            raise error(
                f"{script.stem} was stopped after {timeout:.0f} s without an end",
                hint="Raise limits.stage_minutes in the recipe, or see in the log what it waits for.",
                log=log,
            )
        code = running.wait()
    result_file = out / "result.json"
    if code == 0 and result_file.exists():
        result: dict[str, Any] = json.loads(result_file.read_text())
        result_file.unlink()
        job_file.unlink()
        return result
    raise _failure(failure, code, script, environment.name, log, error, watch, relief, begin)


def _events(descriptor: int, deadline: float, look: Callable[[], None]) -> Any:
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
            for line in lines:
                yield json.loads(line)


def _failure(
    event: dict[str, Any] | None,
    code: int,
    script: Path,
    name: str,
    log: Path,
    error: type[QpackError],
    watch: Watch,
    relief: Relief,
    begin: int,
) -> QpackError:
    if event is not None and event["kind"] == "disk_full":
        return EnvironmentFailed(
            f"{script.stem}: no space left on the disk",
            hint="Free some space (`qpack doctor` says how much there is and where) and run the same command again.",
            log=log,
        )
    said = [event["what"], *event["causes"]] if event is not None else tail(log, begin=begin).splitlines()
    place = memory_limits.ran_out(said)
    why = "" if place or code != -signal.SIGKILL else watch.killed()
    if place or why:
        words = next((line.strip() for line in said if memory_limits.ran_out([line])), why)
        turn = relief.knobs(place or "host")
        hints = ("" if place == "gpu" else _sentence(watch.took()), relief.after and f"{relief.after}.",
                 "" if turn else "Use a machine with more memory, or give it more.")  # fmt: skip
        return error(
            f"{script.stem} ran out of {'GPU' if place == 'gpu' else 'host'} memory: {words}",
            hint=" ".join(filter(None, hints)),
            log=log,
            problems=turn,
        )
    if event is not None:
        return error(event["what"], hint=event["hint"], log=log)
    if code == -signal.SIGKILL:
        return error(
            f"{script.stem} was killed (SIGKILL)",
            hint=f"Nothing says that memory ran out: {watch.took()}. `dmesg` may tell more, and whoever may kill it.",
            log=log,
        )
    if code == 127:
        return EnvironmentFailed(
            f"the interpreter of the environment '{name}' can't be started",
            hint=f"Run `qpack envs build {name}`.",
            log=log,
        )
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return error(f"{script.stem} {how} and gave no result. Its last lines:\n{tail(log, begin=begin)}", log=log)


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
