"""The worker that turns texts into tokens."""

from __future__ import annotations

from pathlib import Path

WORKER = Path(__file__).parent.parent.parent / "quantize" / "workers" / "tokens_worker.py"
