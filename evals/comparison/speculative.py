"""Speculative decoding: the share of drafted tokens that is accepted, and the speed that the draft gains.

The gain is the throughput of the server with its draft over the same server without it, in interleaved rounds
(`evals.measure.interleave`) on texts: random tokens can't be predicted. Terms are vLLM's: the acceptance rate is
accepted over drafted tokens, the mean accepted length is tokens per step of the model (1 plus the accepted ones).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evals.comparison.compare import paired
from qpack.core.records import SpeedRatio
from qpack.core.speed import Interleaved, Run


@dataclass(frozen=True)
class Drafted:
    """One concurrency: the draft's figures (None without drafted tokens), and the speed over the server without it."""

    concurrency: int
    acceptance_rate: float | None
    accepted_length: float | None
    gain: SpeedRatio


def read(found: Interleaved) -> tuple[Drafted, ...]:
    """Figures per concurrency; the subject has the draft, the reference is the same server without it."""
    return tuple(
        Drafted(turns.concurrency, *accepted([turn.subject for turn in turns.rounds]), paired(turns))
        for turns in found.levels
    )


def accepted(runs: Sequence[Run]) -> tuple[float | None, float | None]:
    """(acceptance rate, mean accepted length) over all runs; None without drafted tokens."""
    drafts = [run.drafts for run in runs if run.drafts]
    steps, tokens = sum(one.drafts for one in drafts), sum(one.draft_tokens for one in drafts)
    right = sum(one.accepted_tokens for one in drafts)
    return (right / tokens, 1 + right / steps) if steps and tokens else (None, None)


def sentence(one: Drafted) -> str:
    """The figures in one line."""
    if one.acceptance_rate is None or one.accepted_length is None:
        return f"{one.concurrency} at once: no drafted tokens"
    ratio = one.gain.throughput
    span = f" [{ratio.interval.low:.3f}, {ratio.interval.high:.3f}]" if ratio.interval else ""
    before, after = one.gain.tokens_per_second or (0.0, 0.0)
    drafted = f"{one.acceptance_rate:.0%} of the drafted tokens accepted, {one.accepted_length:.2f} tokens per step"
    rates = f"{after:,.1f} output tok/s, {before:,.1f} without the draft: x{ratio.value:.3f}{span}"
    return f"{one.concurrency} at once: {drafted}; {rates}"
