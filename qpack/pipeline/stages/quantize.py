"""The artifact, made by the engine in its own environment."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from qpack.core.records import Quantized
from qpack.pipeline.needed import need
from qpack.pipeline.stages.working import call
from qpack.runtime import worker
from quantize.engines.protocol import Paths
from quantize.engines.workers.engine_answer import Answer

if TYPE_CHECKING:
    from qpack.pipeline.state import Build


def make(build: Build, out: Path) -> Quantized:
    """Write the artifact into `out/checkpoint`. Raises QuantizeError."""
    engine, request = build.plan.engine, build.plan.request
    tokens = build.calibrated.folder / "tokens.jsonl" if build.calibrated else None
    scratch = build.store.scratch("quantize", build.plan.key("quantize"))
    job = engine.job(request, Paths(need(build.fetched).folder / "checkpoint", tokens, scratch))
    answer = worker.run(engine.WORKER, job, Answer, call(build, "quantize", engine.ENVIRONMENT.name, out))
    shutil.rmtree(scratch, ignore_errors=True)
    return engine.read(request, out, answer)
