"""The job of AutoAWQ's worker; qpack and the worker both import it (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """`tokens` is a file of JSON lines, {"input_ids": [...]}; `ignore` are parts of layers' names. `config` and
    `tokenizer_config` are the source's as transformers 4 reads them, `artifact_config` is the artifact's config.json.
    """

    checkpoint: str
    tokens: str
    group_size: int
    ignore: tuple[str, ...]
    trust_remote_code: bool
    config: dict[str, object]
    artifact_config: dict[str, object]
    tokenizer_config: dict[str, object]
