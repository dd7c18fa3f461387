"""Job and answer of the worker that compares prompts; qpack and the worker both import them (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional


@dataclass(frozen=True)
class Job:
    """Folders of two checkpoints with their tokenizers."""

    checkpoint: str
    source: str


@dataclass(frozen=True)
class Rendered:
    """What a tokenizer makes of a prompt: the text as a server would send it, its token ids, or why there are none."""

    text: Optional[str]
    ids: tuple[int, ...] = ()
    refused: str = ""


@dataclass(frozen=True)
class Difference:
    """A prompt that the two make different tokens of."""

    kind: Literal["conversation", "text"]
    checkpoint: Rendered
    source: Rendered


@dataclass(frozen=True)
class Answer:
    """How many prompts were compared, and those that differ."""

    compared: int
    differences: tuple[Difference, ...]
