"""`qpack serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qpack.serve.served_release import Served
from registry.serving.serving_manifest import command

if TYPE_CHECKING:
    from evals.server.vllm_server import Server


def command_of(served: Served, model: Path, port: int) -> None:
    """The command that would be run."""
    print(command(served.manifest, str(model), host="127.0.0.1", port=port))


def serving(served: Served, server: Server) -> None:
    """A server that is ready."""
    print(f"{served.reference} answers as {server.model} at {server.base_url}/v1 (vLLM {server.version})", flush=True)
    print("Ctrl-C stops it. Its log:", file=sys.stderr, flush=True)
