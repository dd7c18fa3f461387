"""Job and answer of the worker that generates with transformers; qpack and it both import them (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """`dtype` is "auto" or a torch name; `batches` are sequences at once."""

    checkpoint: str
    random_weights: bool
    dtype: str
    batches: tuple[int, ...]
    input_tokens: int
    output_tokens: int
    repeats: int
    seed: int


@dataclass(frozen=True)
class Batch:
    """Seconds of each repeat."""

    batch: int
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Answer:
    """Every batch size, in the job's order."""

    tool: str
    batches: tuple[Batch, ...]
