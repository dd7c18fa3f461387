"""The job of AutoRound's worker; qpack and the worker both import it (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Job:
    """`tokens` is a file of JSON lines, {"input_ids": [...]}; `group_size` None is the scheme's own, -1 whole channels.
    `ignore` are names, ends of names, or `re:` and an expression; `format` is AutoRound's name of one.
    """

    checkpoint: str
    tokens: str
    scheme: str
    group_size: Optional[int]
    symmetric: bool
    format: str
    iterations: int
    ignore: tuple[str, ...]
    trust_remote_code: bool
