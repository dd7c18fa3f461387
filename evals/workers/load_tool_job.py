"""Job and answer of the worker that runs another load generator; qpack and it both import them (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional

Tool = Literal["guidellm", "inference-perf"]


@dataclass(frozen=True)
class ToolServer:
    """Its address, what it serves the model as, and a folder with the tokenizer."""

    base_url: str
    model: str
    tokenizer: str


@dataclass(frozen=True)
class ToolLevel:
    """A closed loop of `concurrency` clients, or an open loop of `rate` requests a second."""

    num_prompts: int
    concurrency: Optional[int]
    rate: Optional[float]


@dataclass(frozen=True)
class Job:
    """The levels, one run of each; every prompt has `input_tokens` random tokens, every answer `output_tokens`."""

    tool: Tool
    server: ToolServer
    levels: tuple[ToolLevel, ...]
    input_tokens: int
    output_tokens: int
    seed: int
    rate_seconds: float


@dataclass(frozen=True)
class Times:
    """Milliseconds."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True)
class RawToolRun:
    """A level's figures as the tool gives them. The times are None where no request was answered."""

    seconds: float
    completed: int
    failed: int
    requests_per_second: float
    output_tokens_per_second: float
    ttft_ms: Optional[Times]
    per_token_ms: Optional[Times]
    end_to_end_ms: Optional[Times]


@dataclass(frozen=True)
class Answer:
    """One run of each level. `tool` has its version."""

    tool: str
    levels: tuple[RawToolRun, ...]
