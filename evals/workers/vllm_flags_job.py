"""Jobs and answers of the worker that asks vLLM's parser; qpack and it both import them (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional


@dataclass(frozen=True)
class CommandsJob:
    """Arguments of servers."""

    commands: tuple[tuple[str, ...], ...]
    kind: Literal["commands"] = "commands"


@dataclass(frozen=True)
class TableJob:
    """What the parser takes for every flag."""

    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Parsed:
    """Flags that this parser doesn't have, in full, and what it says to the rest."""

    unknown: tuple[str, ...]
    error: Optional[str]


@dataclass(frozen=True)
class CommandsAnswer:
    """`known` is every flag, `quantization` the methods that this vLLM can load; `answers` are of the commands."""

    version: str
    known: tuple[str, ...]
    quantization: tuple[str, ...]
    answers: tuple[Parsed, ...]


@dataclass(frozen=True)
class TableAnswer:
    """What the parser takes for every flag, and the environment variables that vLLM reads: the content of
    registry/serving/vllm_flags.json.
    """

    version: str
    flags: dict[str, dict[str, object]]
    variables: tuple[str, ...]
