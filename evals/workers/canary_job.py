"""Job and answer of the canary's worker; qpack and the worker both import them (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Job:
    """The server, what is promised (`evals.server.canary.Promise`), and names of checks (empty: all). `chat`: the model
    has a chat template.
    """

    base_url: str
    model: str
    chat: bool
    only: tuple[str, ...]
    max_model_len: int
    tools: bool
    images: bool
    thinking: bool
    prefix_caching: bool
    logprobs: int
    drafting: bool
    acceptance_floor: float
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """One promise, and what was seen of it, or why it wasn't asked."""

    name: str
    claim: str
    outcome: Literal["pass", "fail", "skip"]
    why: str


@dataclass(frozen=True)
class Answer:
    """Every check, and the versions of the SDKs that asked."""

    checks: tuple[Check, ...]
    clients: dict[str, str]
