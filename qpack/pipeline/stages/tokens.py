"""The worker that turns texts into tokens."""

from __future__ import annotations

from pathlib import Path

WORKER = Path(__file__).parents[3] / "quantize" / "checkpoint" / "workers" / "tokens_worker.py"
