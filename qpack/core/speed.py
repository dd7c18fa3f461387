"""What a load test says: times in milliseconds, rates a second. Nothing here computes; `evals.measure.latency` does."""

from __future__ import annotations

from qpack.core.frozen import Frozen


class Percentiles(Frozen):
    """Milliseconds."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


class Drafts(Frozen):
    """Speculative decoding in one run, from the server's counters: `drafts` proposals of `draft_tokens` tokens in all,
    of which `accepted_tokens` were right. `accepted_by_position` is the share of drafts accepted up to each position.
    """

    drafts: int
    draft_tokens: int
    accepted_tokens: int
    accepted_by_position: tuple[float, ...] = ()


class Run(Frozen):
    """One repeat of a load level. `seconds` is its wall time; rates are over all its answered requests in that time.

    `time_per_output_token_ms` is, for each request, the time after its first token over the number of tokens after it
    (vLLM's TPOT); `inter_token_ms` are the single times between two chunks. `good` counts the requests within the
    service level objective, where there is one: over `seconds` that is the goodput. `drafts` is None where the server
    doesn't speculate, or proposed nothing.
    """

    seconds: float
    completed: int
    failed: int
    input_tokens: int
    output_tokens: int
    requests_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float
    good: int | None
    ttft_ms: Percentiles
    inter_token_ms: Percentiles
    time_per_output_token_ms: Percentiles
    end_to_end_ms: Percentiles
    drafts: Drafts | None = None


class Level(Frozen):
    """A closed loop of `concurrency` clients, each sending its next request when the last one is answered."""

    concurrency: int
    input_tokens: int
    output_tokens: int
    runs: tuple[Run, ...]


class OpenLevel(Frozen):
    """An open loop: requests come as a Poisson process of `rate` a second, answered or not."""

    rate: float
    input_tokens: int
    output_tokens: int
    runs: tuple[Run, ...]


class PrefixEffect(Frozen):
    """What the prefix cache saves: the median TTFT of single requests whose first `shared_tokens` tokens the server
    has seen (`hit_ttft_ms`), and of ones of the same length whose tokens it has not (`miss_ttft_ms`).
    """

    shared_tokens: int
    requests: int
    hit_ttft_ms: float
    miss_ttft_ms: float


class Objective(Frozen):
    """A service level objective of one request, in milliseconds; None is no limit."""

    ttft_ms: float | None = None
    time_per_output_token_ms: float | None = None
    end_to_end_ms: float | None = None


class Round(Frozen):
    """One run of each of two servers with the same prompts, one right after the other."""

    subject_first: bool
    reference: Run
    subject: Run


class Turns(Frozen):
    """The rounds of a closed loop of `concurrency` clients that send one request each."""

    concurrency: int
    input_tokens: int
    output_tokens: int
    rounds: tuple[Round, ...]


MOST_OTHER_WORK = 0.1
"""The share of the cores that other work may take before a speed says nothing about the model."""


class OtherWork(Frozen):
    """What other processes took of the `cores` while a load ran, as a share of them all (0 to 1)."""

    share: float
    cores: int

    @property
    def disturbs(self) -> bool:
        """Whether it is too much for a speed to be judged."""
        return self.share > MOST_OTHER_WORK

    def __str__(self) -> str:
        cores = "core" if self.cores == 1 else f"{self.cores} cores"
        return f"other work took {self.share:.0%} of the {cores}"


class Interleaved(Frozen):
    """Two servers, both up, loaded in turn (A B B A ...): what the machine does besides is in both alike.

    `apart` says why there is nothing here: the two didn't fit into memory together. `other_work` as in Latency.
    """

    tool: str
    levels: tuple[Turns, ...]
    apart: str | None = None
    other_work: OtherWork | None = None


class ToolRun(Frozen):
    """A level of a load as another load generator reports it: a closed loop of `concurrency` clients, or an open loop
    of `rate` requests a second. Rates and percentiles are the tool's own.

    `per_token_ms` is the time between tokens after the first, as the tool averages it: GuideLLM over all tokens,
    inference-perf per request.
    """

    concurrency: int | None
    rate: float | None
    seconds: float
    completed: int
    failed: int
    requests_per_second: float
    output_tokens_per_second: float
    ttft_ms: Percentiles
    per_token_ms: Percentiles
    end_to_end_ms: Percentiles


class ToolLoad(Frozen):
    """The load by a generator other than vLLM's: its name and version, and one run of each level."""

    tool: str
    input_tokens: int
    output_tokens: int
    runs: tuple[ToolRun, ...]


class Latency(Frozen):
    """What `vllm bench serve` measured against the running server, warm-up left out.

    `other_work` is of the whole load; None where it isn't known (a server that qpack didn't start).
    """

    tool: str
    levels: tuple[Level, ...]
    open_levels: tuple[OpenLevel, ...] = ()
    prefix: PrefixEffect | None = None
    objective: Objective | None = None
    other_work: OtherWork | None = None
