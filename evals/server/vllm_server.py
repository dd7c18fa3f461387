"""Start a vLLM server, wait until it is ready, and stop it with everything that it started."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.server.codes import SERVER_ENDED
from qpack.core.errors import EnvironmentFailed, EvaluateError
from qpack.core.problems import Code
from qpack.runtime import process
from qpack.runtime.variables import COMPUTE, Group
from qpack.runtime.worker import Progress, tail

_SERVER_NOT_READY = Code("server-not-ready", "vLLM didn't become ready in time.")
_PORT = Code("port", "A port is in use, or can't be opened.")

HOST = "127.0.0.1"
MODULE = "vllm.entrypoints.openai.api_server"

# Lines of vLLM's log while it starts, in order, and the progress to show.
_SIGNS = (
    ("Resolved architecture", "reading the config"),
    ("Initializing a V1 LLM engine", "starting the engine"),
    ("Loading safetensors", "loading weights"),
    ("Loading weights took", "weights loaded"),
    ("KV cache size", "KV cache allocated"),
    ("Starting vLLM", "opening the port"),
)
# The last of a chain of exceptions is often "see root cause above"; these name the cause.
_CAUSE = re.compile(r"(?:^|\s)((?:[A-Za-z_.]*Error|[A-Za-z_.]*Exception|api_server\.py: error): .+)$")
# A warning may contain the text of an exception that vLLM handles; the others only point at a cause.
_NO_CAUSE = (" WARNING ", "Engine core initialization failed", "EngineDeadError", "Executor failed")
# "Free memory on device cuda:0 (9.1/139.8 GiB) on startup is less than desired GPU memory utilization (0.92, ..."
_GPU_IN_USE = "less than desired GPU memory utilization"
# A killed subprocess leaves no exception.
_KILLED = re.compile(r"\s((?:engine core|Worker proc \S+) (?:exited|died) unexpectedly.*)$")


@dataclass(frozen=True)
class Command:
    """What to start: an interpreter with vLLM, its arguments for a host and a port, the variables set for it, and the
    groups of qpack's own variables that it inherits. A measured server gets no secrets.
    """

    python: Path
    arguments: Callable[[str, int], Sequence[str]]
    variables: Mapping[str, str]
    inherits: Sequence[Group] = (COMPUTE,)


@dataclass(frozen=True)
class Server:
    """A running server. `pid` is the root of its process tree; `start_seconds` is from exec to the first healthy
    response.
    """

    base_url: str
    model: str
    pid: int
    log: Path
    start_seconds: float
    version: str


@contextlib.contextmanager
def running(
    command: Command, *, model: str, log: Path, timeout: float, progress: Progress, port: int | None = None
) -> Iterator[Server]:
    """Start vLLM and yield once it is healthy; stop the whole process tree at the end of the block.

    Raises EnvironmentFailed when the port can't be had, EvaluateError when vLLM exits before it is ready (with its own
    reason), or when it isn't ready within `timeout` seconds.
    """
    port = free_port(port)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    started = time.monotonic()
    line = [*process.isolated(command.python, command.variables), "-m", MODULE, *command.arguments(HOST, port)]
    with process.start(
        line, log=log, environment=command.variables, inherit=command.inherits, cwd=log.parent
    ) as server:
        base_url = f"http://{HOST}:{port}"
        version = _wait(server, base_url, log, started + timeout, timeout, progress)
        yield Server(base_url, model, server.pid, log, time.monotonic() - started, version)


@contextlib.contextmanager
def naming(log: Path) -> Iterator[None]:
    """Add the server's log to an EvaluateError that has none."""
    try:
        yield
    except EvaluateError as error:
        error.log = error.log or log
        raise


def alive(server: Server) -> bool:
    """Whether the server still responds."""
    import httpx

    try:
        return httpx.get(f"{server.base_url}/health", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def free_port(wanted: int | None = None) -> int:
    """`wanted`, or any port that is free, on this machine's own address.

    Raises EnvironmentFailed when another process has `wanted`, or this user may not open it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted or 0))
        except OSError as error:
            used = error.errno == errno.EADDRINUSE
            raise EnvironmentFailed(
                _PORT,
                f"port {wanted} is in use on {HOST}" if used else f"port {wanted} of {HOST}: {error.strerror}",
                hint="Use another port (`--port`, in a recipe `serve.port`)."
                + (" `ss -ltnp` shows which process has this one." if used else ""),
            ) from error
        return int(probe.getsockname()[1])


def _wait(
    server: process.Process, base_url: str, log: Path, deadline: float, timeout: float, progress: Progress
) -> str:
    import httpx

    sign = ""
    # One client for all requests: creating one reads certificates, which takes a seventh of a core from the server.
    with httpx.Client(base_url=base_url, timeout=5) as client:
        while time.monotonic() < deadline:
            code = server.poll()
            if code is not None:
                why = cause(log)
                raise EvaluateError(
                    SERVER_ENDED,
                    f"vLLM ended with exit code {code} before it was ready: {why}",
                    hint=hint_for(why),
                    log=log,
                )
            text = log.read_text(errors="replace")
            reached = [words for mark, words in _SIGNS if mark in text]
            if reached and reached[-1] != sign:
                sign = reached[-1]
                progress(len(reached), len(_SIGNS), sign)
            with contextlib.suppress(httpx.HTTPError):
                if client.get("/health").status_code == 200:
                    return str(client.get("/version").json()["version"])
            time.sleep(0.25)
    raise EvaluateError(
        _SERVER_NOT_READY,
        f"vLLM was not ready after {timeout:.0f} s (last progress: {sign or 'none'})",
        hint="Raise limits.server_start_minutes, or see the log.",
        log=log,
    )


def hint_for(why: str) -> str:
    """What to do about the reason that vLLM gave."""
    if _GPU_IN_USE in why:
        return (
            "Something else holds memory of this GPU (`nvidia-smi` names it). End it, choose another GPU with"
            " CUDA_VISIBLE_DEVICES, or set the share that has to be free: `serve.arguments.gpu-memory-utilization`."
        )
    return "The log has the whole story; `serve:` in the recipe sets its flags."


def cause(log: Path) -> str:
    """The first exception in vLLM's log, which causes the later ones; else its line about a killed subprocess; else its
    last lines.
    """
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
        relevant = [line for line in lines if not any(words in line for words in _NO_CAUSE)]
        for pattern, among in ((_CAUSE, relevant), (_KILLED, lines)):
            if found := next(filter(None, map(pattern.search, among)), None):
                return found.group(1)[:500]
    return "its last lines:\n" + tail(log)
