"""The job of llm-compressor's worker; qpack and the worker both import it (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Override:
    """Another scheme for some layers: a name, the end of one, or `re:` and an expression."""

    layers: str
    scheme: str
    group_size: Optional[int]


@dataclass(frozen=True)
class Job:
    """`tokens` is a file of JSON lines, {"input_ids": [...]}; without it no model is loaded, and the safetensors are
    read and written file by file, unless experts are `fused` in one tensor. `group_size` None is one scale a channel,
    `kv_cache` "fp8" or None. `linear_layers` is how many there are, `not_linear` names the weights of other modules.
    """

    checkpoint: str
    tokens: Optional[str]
    method: str
    scheme: str
    group_size: Optional[int]
    overrides: tuple[Override, ...]
    kv_cache: Optional[str]
    ignore: tuple[str, ...]
    damping: float
    trust_remote_code: bool
    linear_layers: int
    fused: bool
    not_linear: tuple[str, ...]
