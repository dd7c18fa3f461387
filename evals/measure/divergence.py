"""How far the artifact's next-token distribution is from the baseline's: KL(baseline || artifact), in nats.

The k most probable tokens of each model are known at every position. From them alone, the divergence is taken over a
coarser set of outcomes: every token that both lists hold is one outcome, all other tokens together are one more.
Merging outcomes never raises a divergence (log sum inequality and data-processing inequality; Cover & Thomas,
"Elements of Information Theory", 2nd ed., theorems 2.7.1 and 2.8.1), so that figure is a lower bound.

At some positions, drawn at random, the log-probability of every token is known, and so is the divergence itself.
`evals.stats.divergence_estimate` makes of both an estimate of the mean over all positions.

How much the lists may hide: with p the baseline's and q the artifact's probabilities, the tokens outside both lists add
sum p log(p/q), which is at most their mass under p times the largest |log p/q| among them. That largest one isn't
known; `tail` puts the largest of the listed tokens of the position in its place, and says so.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evals.stats import divergence_estimate
from qpack.core.errors import EvaluateError
from qpack.core.findings import Divergences, Likely, Position, Tail
from qpack.core.problems import Code

_LOG_PROBABILITIES = Code("log-probabilities", "A file of log-probabilities can't be used.")
_OTHER_POSITIONS = Code("other-positions", "Baseline and artifact were scored at different positions.")

# Probabilities from float32 logs that should sum to 1 miss it by less than this. Both remainders are raised to it, so
# that one lost to rounding doesn't make the divergence infinite; raising both never raises the divergence.
_REMAINDER_FLOOR = 1e-6
_CELLS_AT_ONCE = 8_000_000

WORST = 8
_CONTEXT = 40
_SHOWN = 4


@dataclass(frozen=True)
class TopK:
    """`logprobs.npz` in memory.

    `ids` int32 [positions, k], `logprobs` float32 [positions, k] (nats), `window` int32 [positions], `actual` int32
    [positions] where it was kept. A negative id is padding and stands for no token. `whole` float32 [n, vocabulary]
    are the log-probabilities of every token at the positions `whole_at` int32 [n], ascending; n may be 0.
    """

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    window: NDArray[np.int32]
    actual: NDArray[np.int32] | None = None
    whole_at: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    whole: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))


def load(path: Path) -> TopK:
    """Read `logprobs.npz`. Raises EvaluateError when it can't be read or isn't as `results.Language` describes it."""
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            ids, logprobs, window = file["ids"], file["logprobs"], file["window"]
            actual = file["actual"].astype(np.int32) if "actual" in file else None
            sampled = "whole" in file
            at = file["whole_at"].astype(np.int32) if sampled else np.zeros(0, dtype=np.int32)
            whole = file["whole"].astype(np.float32) if sampled else np.zeros((0, 0), dtype=np.float32)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise EvaluateError(
            _LOG_PROBABILITIES, f"{path}: not a file of top-k log-probabilities: {error}", hint=_AGAIN
        ) from error
    top = TopK(ids.astype(np.int32), logprobs.astype(np.float32), window.astype(np.int32), actual, at, whole)
    fits = top.ids.ndim == 2 and top.ids.shape == top.logprobs.shape and top.window.shape == top.ids.shape[:1]
    fits = fits and top.whole.ndim == 2 and top.whole_at.shape == top.whole.shape[:1]
    if not fits or not np.all((np.diff(at, prepend=-1) > 0) & (at < len(window))):
        shapes = f"ids {ids.shape}, logprobs {logprobs.shape}, window {window.shape}, whole {whole.shape}"
        raise EvaluateError(_LOG_PROBABILITIES, f"{path}: arrays that don't fit together: {shapes}", hint=_AGAIN)
    known = top.ids >= 0
    bad = ~np.isfinite(top.logprobs) | (top.logprobs > 1e-3)
    if bool(np.any(bad & known)):
        position = int(np.argmax(np.any(bad & known, axis=1)))
        raise EvaluateError(
            _LOG_PROBABILITIES,
            f"{path}: position {position} holds a log-probability that is above 0 or not a finite number",
            hint=_NOT_FINITE,
        )
    if bool(np.any(~np.isfinite(top.whole) | (top.whole > 1e-3))):
        raise EvaluateError(
            _LOG_PROBABILITIES,
            f"{path}: a whole distribution holds a log-probability that is above 0 or not a finite number",
            hint=_NOT_FINITE,
        )
    return top


def part(top: TopK, windows: range) -> TopK:
    """The positions in these windows."""
    inside = (top.window >= windows.start) & (top.window < windows.stop)
    actual = None if top.actual is None else top.actual[inside]
    own = inside[top.whole_at]
    at = (np.cumsum(inside) - 1)[top.whole_at[own]].astype(np.int32)
    return TopK(top.ids[inside], top.logprobs[inside], top.window[inside], actual, at, top.whole[own])


def kl_by_position(baseline: TopK, artifact: TopK) -> NDArray[np.float64]:
    """The lower bound of KL(baseline || artifact) in nats, [positions].

    Raises EvaluateError when the two were scored at different positions.
    """
    return _by_position(baseline, artifact)[0]


def tail(baseline: TopK, artifact: TopK) -> Tail | None:
    """What the lists leave open, as means over positions; None without positions."""
    bound, mass, listed, change, _ = _by_position(baseline, artifact)
    if not len(mass):
        return None
    # A position whose lists share no token shows no change of its own: the largest seen anywhere stands in.
    change = np.where(np.isnan(change), np.nanmax(change, initial=0.0), change)
    return Tail(
        mass=float(mass.mean()), kl_at_most=float((listed + mass * change).mean()), kl_at_least=float(bound.mean())
    )


def worst(baseline: TopK, artifact: TopK, spelling: Mapping[int, str], count: int = WORST) -> tuple[Position, ...]:
    """The positions that differ most, at most one a window, the most different first. Empty when the actual tokens
    were not kept.
    """
    if baseline.actual is None or count < 1:
        return ()
    kl = kl_by_position(baseline, artifact)
    found: list[Position] = []
    seen: set[int] = set()
    for place in np.argsort(-kl, kind="stable"):
        window = int(baseline.window[place])
        if window in seen:
            continue
        seen.add(window)
        start = int(np.argmax(baseline.window == window))
        before = baseline.actual[max(start, place - _CONTEXT) : place]
        found.append(
            Position(
                window=window,
                kl=float(kl[place]),
                context="".join(_spell(token, spelling) for token in before),
                actual=_spell(baseline.actual[place], spelling),
                baseline=_likely(baseline, int(place), spelling),
                artifact=_likely(artifact, int(place), spelling),
            )
        )
        if len(found) == count:
            break
    return tuple(found)


def spelling(logprobs: Path) -> dict[int, str]:
    """{token id: text} from the file beside `logprobs`; empty when it isn't there or can't be read."""
    try:
        return {int(k): str(v) for k, v in json.loads((logprobs.parent / "vocabulary.json").read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _likely(top: TopK, place: int, spelling: Mapping[int, str]) -> tuple[Likely, ...]:
    pairs = zip(top.ids[place][:_SHOWN], top.logprobs[place][:_SHOWN], strict=True)
    return tuple(
        Likely(text=_spell(token, spelling), probability=float(np.exp(log))) for token, log in pairs if token >= 0
    )


def _spell(token: int, spelling: Mapping[int, str]) -> str:
    return spelling.get(int(token), f"<{int(token)}>")


Parts = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Each [positions]: KL's lower bound, the baseline's probability outside both lists, sum p log(p/q) over the tokens in
both, their largest |log p/q| (NaN where there is none), and the share of the baseline's list that the artifact's lacks.
"""


def _by_position(baseline: TopK, artifact: TopK) -> Parts:
    _check_same_positions(baseline, artifact)
    positions = len(baseline.window)
    result = np.empty((5, positions), dtype=np.float64)
    step = max(1, _CELLS_AT_ONCE // max(1, baseline.ids.shape[1] * artifact.ids.shape[1]))
    for start in range(0, positions, step):
        part = slice(start, start + step)
        result[:, part] = _kl(baseline.ids[part], baseline.logprobs[part], artifact.ids[part], artifact.logprobs[part])
    return result[0], result[1], result[2], result[3], result[4]


def flips_by_position(baseline: TopK, artifact: TopK) -> NDArray[np.bool_]:
    """Where the most probable token differs, [positions].

    Raises EvaluateError when the two were scored at different positions.
    """
    _check_same_positions(baseline, artifact)
    return np.asarray(baseline.ids[:, 0] != artifact.ids[:, 0])


def sums(baseline: TopK, artifact: TopK) -> Divergences:
    """What the figures are computed from, window by window. Without whole distributions it is for the lower bound.

    Raises EvaluateError when the two were scored at different positions, or have other numbers of tokens.
    """
    bound, mass, _, _, missing = _by_position(baseline, artifact)
    at, whole = baseline.whole_at, kl_of_whole(baseline, artifact)
    return Divergences(
        estimator=divergence_estimate.WHOLE if len(at) else divergence_estimate.LOWER_BOUND,
        windows=divergence_estimate.window_sums(
            baseline.window,
            flips_by_position(baseline, artifact),
            bound,
            np.stack([mass, mass * missing], axis=1),
            at,
            whole - bound[at],
        ),
    )


def kl_of_whole(baseline: TopK, artifact: TopK) -> NDArray[np.float64]:
    """KL(baseline || artifact) over the whole vocabulary in nats, [n] at the positions `whole_at`."""
    _check_same_positions(baseline, artifact)
    if baseline.whole.shape != artifact.whole.shape or not np.array_equal(baseline.whole_at, artifact.whole_at):
        (n, own), (m, other) = baseline.whole.shape, artifact.whole.shape
        raise EvaluateError(
            _OTHER_POSITIONS,
            f"whole distributions: {own:,} tokens at {n} positions of the baseline, {other:,} at {m} of the artifact",
            hint="Both need the same vocabulary and the same held-out text; else evaluate again.",
        )
    found = np.empty(len(baseline.whole_at), dtype=np.float64)
    for row, (log_p, log_q) in enumerate(zip(baseline.whole, artifact.whole, strict=True)):
        p_log, q_log = log_p.astype(np.float64), log_q.astype(np.float64)
        p, q = np.exp(p_log), np.exp(q_log)
        # No term is negative, as in `_kl`.
        found[row] = np.maximum(p * (p_log - q_log) - p + q, 0.0).sum()
    return found


def chance_flips(baseline: TopK, artifact: TopK) -> float:
    """The flip rate if the artifact's most probable tokens were dealt to the positions at random: one less the
    agreement by chance, as in Cohen's kappa (Educational and Psychological Measurement 20, 1960). NaN without
    positions.
    """
    _check_same_positions(baseline, artifact)
    if not len(baseline.window):
        return math.nan
    tokens, counts = np.unique(baseline.ids[:, 0], return_counts=True)
    others, theirs = np.unique(artifact.ids[:, 0], return_counts=True)
    _, here, there = np.intersect1d(tokens, others, return_indices=True)
    positions = len(baseline.window)
    return 1.0 - float((counts[here] / positions * (theirs[there] / positions)).sum())


def _kl(
    p_ids: NDArray[np.int32], p_logs: NDArray[np.float32], q_ids: NDArray[np.int32], q_logs: NDArray[np.float32]
) -> Parts:
    match = (p_ids[:, :, None] == q_ids[:, None, :]) & (p_ids >= 0)[:, :, None]
    common = match.any(axis=2)
    where = match.argmax(axis=2)
    log_p = np.where(common, p_logs, 0.0).astype(np.float64)
    log_q = np.where(common, np.take_along_axis(q_logs, where, axis=1), 0.0).astype(np.float64)
    p, q = np.exp(log_p) * common, np.exp(log_q) * common
    p_rest = np.maximum(1 - p.sum(axis=1), _REMAINDER_FLOOR)
    q_rest = np.maximum(1 - q.sum(axis=1), _REMAINDER_FLOOR)
    # p log(p/q) - p + q sums to the divergence when p and q sum to the same, and no term of it is negative: rounding
    # can't make the result negative.
    terms = np.maximum(p * (log_p - log_q) - p + q, 0.0)
    rest = np.maximum(p_rest * np.log(p_rest / q_rest) - p_rest + q_rest, 0.0)
    change = np.where(common, np.abs(log_p - log_q), -1.0).max(axis=1)
    return (
        terms.sum(axis=1) + rest,
        np.maximum(1 - p.sum(axis=1), 0.0),
        (p * (log_p - log_q)).sum(axis=1),
        np.where(change < 0, np.nan, change),
        1 - common.sum(axis=1) / np.maximum((p_ids >= 0).sum(axis=1), 1),
    )


def _check_same_positions(baseline: TopK, artifact: TopK) -> None:
    if not np.array_equal(baseline.window, artifact.window):
        raise EvaluateError(
            _OTHER_POSITIONS,
            f"baseline and artifact were scored at different positions "
            f"({len(baseline.window):,} and {len(artifact.window):,} of them)",
            hint=_AGAIN,
        )


_NOT_FINITE = "The model computes NaN or infinity, or the server sent something else; look at the server's log."
_AGAIN = "Remove this result from the work store and evaluate again."
