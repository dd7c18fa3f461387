"""Jobs and answers of the workers that run `vllm bench serve`; qpack and both import them (see qpack_protocol).

Times are in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Server:
    """Its address, what it serves the model as, and a folder with the tokenizer."""

    base_url: str
    model: str
    tokenizer: str


@dataclass(frozen=True)
class Level:
    """`concurrency` None is without limit; `rate` is requests per second, Poisson, None as fast as they are answered.
    `prefix_tokens` are shared by all prompts of a run, beside `input_tokens`.
    """

    num_prompts: int
    concurrency: Optional[int]
    rate: Optional[float]
    prefix_tokens: int = 0


def share(level: Level) -> float:
    """How long a request of a level takes beside those of others, for the time that is left.

    More requests at once are answered faster each, until the server is full. On an H200 a Llama-3-8B took 0.64, 0.055,
    0.025 and 0.024 s a request at 1, 16, 64 and 256 at once; a root is within a factor of 2.2 of what was left.
    """
    return max(level.rate or level.concurrency or 1, 1) ** -0.5


@dataclass(frozen=True)
class Prefix:
    """Tokens that prompts share, and how many requests show what that saves."""

    tokens: int
    requests: int


@dataclass(frozen=True)
class Requests:
    """What is sent: `prompts`, a JSON Lines file of `prompt` or `input_ids`, or else random tokens; lengths in tokens.
    `warmups` are requests before each level, not counted.
    """

    input_tokens: int
    output_tokens: int
    warmups: int
    seed: int
    prompts: Optional[str] = None


@dataclass(frozen=True)
class Job:
    """A level runs `repeats` times, then until the interval of the median of its throughput and of its TTFT is narrower
    than `precision` of the median, at most `max_repeats` times.
    """

    server: Server
    levels: tuple[Level, ...]
    prefix: Optional[Prefix]
    repeats: int
    max_repeats: int
    precision: float
    requests: Requests


@dataclass(frozen=True)
class TurnsJob:
    """Both servers in turn: in each round every closed loop of `concurrency` runs once, with one request per client."""

    reference: Server
    subject: Server
    concurrency: tuple[int, ...]
    rounds: int
    requests: Requests


@dataclass(frozen=True)
class RawDrafts:
    """What speculative decoding did in a run, from the server's counters before and after."""

    drafts: int
    draft_tokens: int
    accepted_tokens: int
    accepted_by_position: tuple[float, ...]


@dataclass(frozen=True)
class RawRun:
    """`ttft` and `end_to_end` are of the requests that were answered, in the order in which they were sent;
    `inter_token` are the times between chunks, of all of them.
    """

    seconds: float
    completed: int
    failed: int
    input_tokens: int
    output_tokens: int
    errors: tuple[str, ...]
    ttft: tuple[float, ...]
    inter_token: tuple[float, ...]
    end_to_end: tuple[float, ...]
    drafts: Optional[RawDrafts] = None


@dataclass(frozen=True)
class PrefixRuns:
    """Single requests: with a prefix that all share, and with as many tokens that none share."""

    hit: RawRun
    miss: RawRun


@dataclass(frozen=True)
class Answer:
    """The runs of every level."""

    tool: str
    levels: tuple[tuple[RawRun, ...], ...]
    prefix: Optional[PrefixRuns]


@dataclass(frozen=True)
class Turn:
    """One round of a level: a run on each server."""

    subject_first: bool
    reference: RawRun
    subject: RawRun


@dataclass(frozen=True)
class TurnsAnswer:
    """The rounds of every level."""

    tool: str
    levels: tuple[tuple[Turn, ...], ...]
