"""Job and answer of the worker that reads GGUF; qpack and the worker both import them (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Job:
    """The GGUF file, and a licence file to put beside the checkpoint."""

    gguf: str
    licence_file: Optional[str]


@dataclass(frozen=True)
class Answer:
    """What a reader of the release should know of the conversion."""

    notes: tuple[str, ...]
