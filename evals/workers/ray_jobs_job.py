"""Job and answer of the worker that runs commands on a cluster; qpack and it both import them (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Resources:
    """What each command takes."""

    num_cpus: int
    num_gpus: int


@dataclass(frozen=True)
class Command:
    """What runs on a node: its words, its folder there, and the variables that it gets."""

    name: str
    line: tuple[str, ...]
    folder: str
    variables: dict[str, str]


@dataclass(frozen=True)
class Job:
    """`address` is that of a cluster that runs; None starts one here, with `cpus`, for as long as the commands take."""

    address: Optional[str]
    cpus: int
    resources: Resources
    commands: tuple[Command, ...]


@dataclass(frozen=True)
class Ended:
    """How a command ended; `code` is None where Ray lost it, and then `err` is Ray's own error."""

    code: Optional[int]
    out: str
    err: str
    node: str = ""


@dataclass(frozen=True)
class Answer:
    """Every command, in the job's order."""

    jobs: tuple[Ended, ...]
