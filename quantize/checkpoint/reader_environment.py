"""The environment that reads checkpoints and tokenizers, whatever the engine."""

from __future__ import annotations

from pathlib import Path

from qpack.runtime.specs import Spec

TRANSFORMERS = Spec("transformers", Path(__file__).parent / "envs" / "transformers", ("torch", "transformers", "gguf"))
