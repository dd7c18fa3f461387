"""What is measured of a model, as data: the same data is part of a stage's key and is given to the measure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from evals.measure.suite import TaskRequest
from evals.workers.vllm_bench_job import Level
from qpack.core.findings import TextDomain
from qpack.core.speed import Objective


@dataclass(frozen=True)
class Load:
    """The load on a server. Lengths in tokens.

    Each of `concurrency` is a closed loop of that many clients with `requests_per_client` requests each; each of
    `rates` an open loop of that many requests per second for `rate_seconds`. A level runs `repeats` times, then until
    the medians of its runs are known to `precision` (relative), at most `max_repeats` times. `prefix_tokens` above 0
    measures the effect of a shared prefix of that length.
    """

    concurrency: tuple[int, ...]
    input_tokens: int
    output_tokens: int
    requests_per_client: int = 2
    rates: tuple[float, ...] = ()
    rate_seconds: float = 30.0
    prefix_tokens: int = 0
    prefix_requests: int = 8
    repeats: int = 3
    max_repeats: int = 3
    precision: float = 0.05
    warmups: int = 4
    objective: Objective | None = None

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.output_tokens < 2 or not (self.concurrency or self.rates):
            raise ValueError("a load needs a level, repeats >= 1, and output_tokens >= 2 (for a time between tokens)")

    def levels(self) -> Iterator[Level]:
        """The levels as the worker takes them: closed loops, then open loops."""
        for concurrency in self.concurrency:
            yield Level(concurrency * self.requests_per_client, concurrency, None)
        for rate in self.rates:
            yield Level(max(2, math.ceil(rate * self.rate_seconds)), None, rate)


Share = tuple[float, float]
"""A range of a task's items in their random order, as shares: (begin, end)."""
WHOLE: Share = (0.0, 1.0)


@dataclass(frozen=True)
class PerformanceSpec:
    """The load, and the seed of its prompts."""

    load: Load
    seed: int


@dataclass(frozen=True)
class InterleavedSpec:
    """The load on two servers in turn, the number of rounds, and the seed of its prompts. `texts` sends the held-out
    windows instead of random tokens.
    """

    load: Load
    rounds: int
    seed: int
    texts: bool = False


@dataclass(frozen=True)
class LanguageSpec:
    """How many log-probabilities of each position are kept, which windows belong to which text, and at how many
    positions the whole distribution is asked for.
    """

    top_k: int
    domains: tuple[TextDomain, ...] = ()
    whole_positions: int = 0


@dataclass(frozen=True)
class ContinuationsSpec:
    """How many tokens each window is continued by."""

    tokens: int


@dataclass(frozen=True)
class NeedleSpec:
    """The depths of the text (0 to 1) at which facts are hidden, how many per depth, the tokens of an answer, and the
    seed of the facts.
    """

    depths: tuple[float, ...]
    prompts: int
    answer_tokens: int
    seed: int


@dataclass(frozen=True)
class CrossCheckSpec:
    """How many windows of the held-out text plain transformers scores too."""

    windows: int


@dataclass(frozen=True)
class TasksSpec:
    """The tasks, the seed that draws their items, and the share of the items to answer."""

    tasks: tuple[TaskRequest, ...]
    seed: int
    share: Share = WHOLE
