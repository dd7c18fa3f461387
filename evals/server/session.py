"""A server that answers, and all that measuring it takes: what every measure gets beside its spec."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from evals.server import client, vllm_server
from evals.server.client import Endpoint
from evals.server.vllm_server import Command, Server
from qpack.core.errors import EvaluateError
from qpack.core.problems import Code
from qpack.runtime import worker
from qpack.runtime.worker import Interpreter, Progress

_NO_WINDOWS = Code("no-windows", "There is no held-out text to measure with.")


@dataclass(frozen=True)
class Limits:
    """Seconds: for the start of a server, for all that one tool does, for one request."""

    start: float = 1800.0
    tool: float = 7200.0
    request: float = 600.0


@dataclass(frozen=True)
class Workspace:
    """Where measuring tools run: their environments by name, a folder for results, the server's log (each tool's log is
    beside it), and what gets progress lines (`report`). `free_accelerator` gives the free bytes of the accelerator.
    """

    tools: Mapping[str, Interpreter]
    out: Path
    log: Path
    progress: Progress = client.nothing
    report: Callable[[str], None] = lambda _: None
    limits: Limits = Limits()
    free_accelerator: Callable[[], int] = lambda: 0

    def call(self, tool: str, name: str) -> worker.Call:
        """How a worker is run in a tool's environment, in `out`/`name`, with a log of that name."""
        out, log = self.out / name, self.log_of(name)
        return worker.Call(self.tools[tool], out, log, self.limits.tool, EvaluateError, self.progress)

    def log_of(self, name: str) -> Path:
        """The log of a tool."""
        return self.log.with_suffix(f".{name}.log")


@dataclass(frozen=True)
class ServedModel:
    """A model to serve: its name, its checkpoint folder, and how its server is started. Lengths in tokens."""

    name: str
    checkpoint: Path
    command: Command
    port: int | None
    max_model_len: int


@contextmanager
def serving(served: ServedModel, workspace: Workspace) -> Iterator[Server]:
    """The model's server, started and stopped at the end of the block. Raises EvaluateError."""
    workspace.report(f"starting vLLM on {served.name}")
    with vllm_server.running(
        served.command,
        model=served.name,
        log=workspace.log,
        timeout=workspace.limits.start,
        progress=workspace.progress,
        port=served.port,
    ) as server:
        yield server


@dataclass(frozen=True, kw_only=True)
class Session:
    """A server to measure. `tokenizer` is a folder that has the model's; `windows` the held-out text, JSON Lines of
    {"input_ids": [...]}; `max_model_len` is None where nobody knows it.
    """

    endpoint: Endpoint
    workspace: Workspace
    tokenizer: Path
    max_model_len: int | None = None
    windows: Path | None = None

    def context(self) -> int:
        """Tokens that fit into one request; the server is asked where nobody said. Raises EvaluateError."""
        return self.max_model_len or client.max_model_len(self.endpoint.base_url, self.endpoint.model)

    def texts(self) -> Path:
        """The held-out text. Raises EvaluateError without one."""
        if self.windows is None:
            raise EvaluateError(_NO_WINDOWS, "there is no held-out text to measure with")
        return self.windows


@dataclass(frozen=True, kw_only=True)
class ServedSession(Session):
    """A model whose server was started for this."""

    served: ServedModel
    server: Server

    def within(self, out: Path) -> ServedSession:
        """The same, with another folder for results."""
        return replace(self, workspace=replace(self.workspace, out=out))
