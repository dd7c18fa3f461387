"""Real models: the very small one of the scenarios, and SmolLM2-135M, which has something to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from qpack.core.errors import QuantizeError
from qpack.runtime import worker
from qpack.runtime.environments import Environment
from quantize.checkpoint.workers.gguf_job import Answer, Job
from tests.scenarios.conftest import kept, tiny_model

__all__ = ["smollm2", "tiny_model"]

GGUF_WORKER = Path(__file__).parents[2] / "quantize" / "checkpoint" / "workers" / "gguf_worker.py"


@pytest.fixture(scope="session")
def smollm2(engine_home: Path) -> Path:
    """SmolLM2-135M-Instruct as a checkpoint, from the demo's package."""

    def make(environment: Environment, gguf: Path, part: Path) -> None:
        call = worker.Call(environment, part, engine_home / "logs" / "smollm2.log", 600, QuantizeError)
        worker.run(GGUF_WORKER, Job(str(gguf), None), Answer, call)

    return kept(engine_home, "smollm2", GGUF_WORKER, make) / "checkpoint"
