"""The job of GPTQModel's worker; qpack and the worker both import it (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """`tokens` is a file of JSON lines, {"input_ids": [...]}; `group_size` -1 is whole channels; `skip` are regular
    expressions of layers to leave alone, each for a whole name.
    """

    checkpoint: str
    tokens: str
    bits: int
    group_size: int
    skip: tuple[str, ...]
    damping: float
    trust_remote_code: bool
