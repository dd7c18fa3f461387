"""The job of AutoGPTQ's worker; qpack and the worker both import it (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """`tokens` is a file of JSON lines, {"input_ids": [...]}; `group_size` -1 is whole channels. `config` is the
    source's as transformers 4 reads it, `artifact_config` is the artifact's config.json.
    """

    checkpoint: str
    tokens: str
    bits: int
    group_size: int
    damping: float
    trust_remote_code: bool
    config: dict[str, object]
    artifact_config: dict[str, object]
