"""The job of Model-Optimizer's worker; qpack and the worker both import it (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Job:
    """`tokens` is a file of JSON lines, {"input_ids": [...]}, or None where nothing is calibrated. `config` names a
    preset of Model-Optimizer's. `ignore` are names, ends of names, or `re:` and an expression.
    """

    checkpoint: str
    tokens: Optional[str]
    config: str
    ignore: tuple[str, ...]
    trust_remote_code: bool
