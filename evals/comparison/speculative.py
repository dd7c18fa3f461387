"""Speculative decoding: how much of what is drafted is accepted, and what the draft gains.

The gain is the server with its draft over the same server without it, loaded in turn (`evals.measure.interleave`), on
texts: a draft is worth what it guesses, and nobody can guess random tokens. Terms are vLLM's: the acceptance rate is
accepted over drafted tokens, the mean accepted length the tokens that one step of the model gives (1 and what was
accepted).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evals.comparison.compare import paired
from qpack.core.records import SpeedRatio
from qpack.core.speed import Interleaved, Run


@dataclass(frozen=True)
class Drafted:
    """One concurrency: the draft's figures (None where nothing was drafted), and the ratio to the server without it."""

    concurrency: int
    acceptance_rate: float | None
    accepted_length: float | None
    gain: SpeedRatio


def read(found: Interleaved) -> tuple[Drafted, ...]:
    """What `found` says, where the subject drafts and the reference is the same server without the draft."""
    return tuple(
        Drafted(turns.concurrency, *accepted([turn.subject for turn in turns.rounds]), paired(turns))
        for turns in found.levels
    )


def accepted(runs: Sequence[Run]) -> tuple[float | None, float | None]:
    """(acceptance rate, mean accepted length) over all the runs; None where nothing was drafted."""
    drafts = [run.drafts for run in runs if run.drafts]
    steps, tokens = sum(one.drafts for one in drafts), sum(one.draft_tokens for one in drafts)
    right = sum(one.accepted_tokens for one in drafts)
    return (right / tokens, 1 + right / steps) if steps and tokens else (None, None)


def sentence(one: Drafted) -> str:
    """A line for people."""
    if one.acceptance_rate is None or one.accepted_length is None:
        return f"{one.concurrency} at once: nothing was drafted"
    ratio = one.gain.throughput
    span = f" [{ratio.interval.low:.3f}, {ratio.interval.high:.3f}]" if ratio.interval else ""
    before, after = one.gain.tokens_per_second or (0.0, 0.0)
    drafted = f"{one.acceptance_rate:.0%} of the drafted tokens accepted, {one.accepted_length:.2f} tokens a step"
    rates = f"{after:,.1f} output tok/s, {before:,.1f} without the draft: x{ratio.value:.3f}{span}"
    return f"{one.concurrency} at once: {drafted}; {rates}"
