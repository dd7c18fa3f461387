"""The source model as a transformers checkpoint: converted from GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qpack.core import hashing
from qpack.core.errors import EnvironmentFailed
from qpack.core.records import Fetched
from qpack.pipeline.stages.fetch import fetched
from qpack.pipeline.stages.working import call
from qpack.runtime import worker
from quantize.checkpoint.workers.gguf_job import Answer, Job

if TYPE_CHECKING:
    from qpack.pipeline.state import Build

WORKER = Path(__file__).parents[3] / "quantize" / "checkpoint" / "workers" / "gguf_worker.py"


def make(build: Build, licence: str | None, out: Path) -> Fetched:
    """Write the checkpoint into `out/checkpoint`. Raises QuantizeError, and EnvironmentFailed when the file was changed
    meanwhile.
    """
    source = build.plan.source
    job = Job(str(source.path), str(source.licence_file) if source.licence_file else None)
    notes = worker.run(WORKER, job, Answer, call(build, "fetch", "transformers", out)).notes
    if source.path is not None and source.content not in (None, hashing.sha256_once(source.path)):
        raise EnvironmentFailed(
            f"{source.path} was changed while it was read", hint="Run the same command again when nothing writes to it."
        )
    return fetched(source, licence, out, notes)
