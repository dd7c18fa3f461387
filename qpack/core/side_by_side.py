"""Figures of baseline and artifact that are shown beside their ratio: one place for every page, table and console.

The ratio beside two numbers is their ratio. A ratio of throughput is that of geometric means
(`evals.stats.estimates`), so geometric means stand beside it, over the same runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from qpack.core.figures import Estimate
from qpack.core.records import Memory, Release
from qpack.core.speed import Interleaved, Level, OpenLevel, Run


@dataclass(frozen=True)
class SideBySide:
    """Two figures in one unit, and the ratio of the artifact's to the baseline's."""

    baseline: float
    artifact: float
    ratio: Estimate


@dataclass(frozen=True)
class Throughput(SideBySide):
    """Output tokens per second at one concurrency."""

    concurrency: int


def throughput(release: Release) -> tuple[Throughput, ...]:
    """At each concurrency that was compared: from the rounds where both were loaded in turn, else from each one's own
    runs.
    """
    c = release.comparison
    runs = _rounds(release.interleaved) if c.apart is None else _own_runs(release)
    found = []
    for speed in c.speed:
        if speed.concurrency in runs:
            before, after = mean_rates(*runs[speed.concurrency])
        else:  # of a release that doesn't hold its rounds
            before, after = speed.tokens_per_second or (math.nan, math.nan)
        found.append(Throughput(before, after, speed.throughput, speed.concurrency))
    return tuple(found)


def perplexity(release: Release) -> SideBySide:
    """On all of the held-out text."""
    c = release.comparison
    return SideBySide(c.perplexity_baseline, c.perplexity_artifact, c.perplexity_ratio)


def weights_bytes(release: Release) -> SideBySide:
    """Of the safetensors files."""
    before, after = release.baseline.memory, release.artifact.memory
    return SideBySide(before.weights_bytes, after.weights_bytes, release.comparison.size_ratio)


def memory_bytes(release: Release) -> SideBySide | None:
    """Of one server each; see `server_bytes`. None of an emulated artifact: that server held its twin."""
    if release.artifact.emulated is not None:
        return None
    before, after = server_bytes(release.baseline.memory), server_bytes(release.artifact.memory)
    return SideBySide(before, after, release.comparison.memory_ratio)


def shared_machine(release: Release) -> str:
    """A sentence, where other work took too much of the machine while speed was measured; else empty."""
    work = release.comparison.other_work
    if work is None or not work.disturbs:
        return ""
    return (
        f"{str(work).capitalize()} while baseline and artifact were loaded. These speeds say nothing about the models:"
        " the ratios have wider intervals, and gates on speed are undecided."
    )


def beside_native(release: Release, *, whole: bool = False) -> Release | None:
    """The same release with the source as it is stored in the baseline's place; None where that wasn't measured.
    Without the speed of an emulated artifact, unless it is asked for `whole`.
    """
    if (native := release.native) is None:
        return None
    compared = native.comparison
    if release.artifact.emulated is not None and not whole:
        compared = compared.model_copy(update={"speed": ()})
    return release.model_copy(update={"baseline": native.evidence, "comparison": compared, "interleaved": None})


def server_bytes(memory: Memory) -> int:
    """The server's memory: weights and KV cache on an accelerator (where vLLM says them), else peak resident set."""
    if memory.weights_loaded_bytes is not None:
        return memory.weights_loaded_bytes + memory.kv_cache_bytes
    return memory.peak_resident_bytes


def resident_label(memory: Memory) -> str:
    """What the resident set of the server's processes is: beside an accelerator the host's memory alone."""
    return "Host memory of the server" if on_accelerator(memory) else "Resident memory"


def on_accelerator(memory: Memory) -> bool:
    """Whether the model is on an accelerator: there vLLM says what it loaded."""
    return memory.weights_loaded_bytes is not None


def mean_rates(before: Sequence[Run], after: Sequence[Run]) -> tuple[float, float]:
    """Output tokens per second over some runs of each: geometric means, arithmetic ones where a run gave nothing. NaN
    without runs.
    """
    rates = [[run.output_tokens_per_second for run in runs] for runs in (before, after)]
    if not all(rates):
        return math.nan, math.nan
    if min(map(min, rates)) <= 0:
        return math.fsum(rates[0]) / len(rates[0]), math.fsum(rates[1]) / len(rates[1])
    return _geometric(rates[0]), _geometric(rates[1])


def run_median(level: Level | OpenLevel, metric: str, percentile: str) -> float:
    """The median over the runs of a level, in milliseconds: one disturbed run doesn't matter. NaN without runs."""
    values = [float(getattr(getattr(run, metric), percentile)) for run in level.runs]
    return statistics.median(values) if values else math.nan


def mean_rate(level: Level | OpenLevel) -> float:
    """Output tokens per second over the runs of a level; see `mean_rates`."""
    return mean_rates(level.runs, level.runs)[0]


def _geometric(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


Runs = dict[int, tuple[Sequence[Run], Sequence[Run]]]
"""By concurrency: the baseline's and the artifact's."""


def _rounds(interleaved: Interleaved | None) -> Runs:
    levels = interleaved.levels if interleaved else ()
    return {
        level.concurrency: ([r.reference for r in level.rounds], [r.subject for r in level.rounds]) for level in levels
    }


def _own_runs(release: Release) -> Runs:
    own = {level.concurrency: level.runs for level in release.baseline.latency.levels}
    levels = release.artifact.latency.levels
    return {level.concurrency: (own[level.concurrency], level.runs) for level in levels if level.concurrency in own}
