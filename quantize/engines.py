"""The engines, and which one `engine: auto` means."""

from __future__ import annotations

from quantize import gram_adapter, llmcompressor
from quantize.engine import Engine

ENGINES: dict[str, Engine] = {"llmcompressor": llmcompressor, "gram": gram_adapter}


def choose(wanted: str, method: str, scheme: str) -> tuple[Engine | None, str]:
    """The engine, and why; None when none can do it."""
    if wanted != "auto":
        engine = ENGINES[wanted]
        able = (method, scheme) in engine.WAYS
        return (engine, "the recipe names it") if able else (None, f"{wanted} doesn't make {method} {scheme}")
    for engine in ENGINES.values():
        if (method, scheme) in engine.WAYS:
            return engine, f"it makes {method} {scheme} in the format that vLLM prefers (compressed-tensors)"
    return None, f"no engine makes {method} {scheme}"
