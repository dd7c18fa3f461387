"""How far the artifact's next-token distribution is from the baseline's, from the top-k log-probabilities of both.

Only the k most probable tokens of each model are known, so the Kullback-Leibler divergence KL(baseline || artifact) is
taken over a coarser set of outcomes: every token that both lists hold is one outcome, all other tokens together are one
more. Merging outcomes never raises a divergence (log sum inequality and data-processing inequality; Cover & Thomas,
"Elements of Information Theory", 2nd ed., theorems 2.7.1 and 2.8.1), so the figure is a lower bound of the true
divergence, in nats.

How much the rest may hide: with p the baseline's and q the artifact's probabilities, the tokens outside both lists add
sum p log(p/q), which is at most their mass under p times the largest |log p/q| among them. That largest one isn't
known; `tail` puts the largest of the listed tokens of the position in its place, and says so.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evals.stats import estimates
from qpack.core.errors import EvaluateError
from qpack.core.findings import Likely, Position, Tail
from qpack.core.records import Estimate

ESTIMATOR = (
    "KL(baseline || artifact) in nats over tokens in both top-{k} lists and one outcome for the rest: a lower bound"
)

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
    [positions] where it was kept. A negative id is padding and stands for no token.
    """

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    window: NDArray[np.int32]
    actual: NDArray[np.int32] | None = None


def load(path: Path) -> TopK:
    """Read `logprobs.npz`. Raises EvaluateError when it can't be read or isn't as `results.Language` describes it."""
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            ids, logprobs, window = file["ids"], file["logprobs"], file["window"]
            actual = file["actual"].astype(np.int32) if "actual" in file else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise EvaluateError(f"{path}: not a file of top-k log-probabilities: {error}", hint=_AGAIN) from error
    top = TopK(ids.astype(np.int32), logprobs.astype(np.float32), window.astype(np.int32), actual)
    if top.ids.ndim != 2 or top.ids.shape != top.logprobs.shape or top.window.shape != top.ids.shape[:1]:
        shapes = f"ids {ids.shape}, logprobs {logprobs.shape}, window {window.shape}"
        raise EvaluateError(f"{path}: arrays that don't fit together: {shapes}", hint=_AGAIN)
    known = top.ids >= 0
    bad = ~np.isfinite(top.logprobs) | (top.logprobs > 1e-3)
    if bool(np.any(bad & known)):
        position = int(np.argmax(np.any(bad & known, axis=1)))
        raise EvaluateError(
            f"{path}: position {position} holds a log-probability that is above 0 or not a finite number",
            hint="The model computes NaN or infinity, or the server sent something else; look at the server's log.",
        )
    return top


def part(top: TopK, windows: range) -> TopK:
    """The positions in these windows."""
    inside = (top.window >= windows.start) & (top.window < windows.stop)
    actual = None if top.actual is None else top.actual[inside]
    return TopK(top.ids[inside], top.logprobs[inside], top.window[inside], actual)


def kl_by_position(baseline: TopK, artifact: TopK) -> NDArray[np.float64]:
    """The lower bound of KL(baseline || artifact) in nats, [positions].

    Raises EvaluateError when the two were scored at different positions.
    """
    return _by_position(baseline, artifact)[0]


def tail(baseline: TopK, artifact: TopK) -> Tail | None:
    """What the lists leave open, as means over positions; None without positions."""
    _, mass, listed, change = _by_position(baseline, artifact)
    if not len(mass):
        return None
    # A position whose lists share no token shows no change of its own: the largest seen anywhere stands in.
    change = np.where(np.isnan(change), np.nanmax(change, initial=0.0), change)
    return Tail(mass=float(mass.mean()), kl_at_most=float((listed + mass * change).mean()))


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


Parts = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Each [positions]: KL's lower bound, the baseline's probability outside both lists, sum p log(p/q) over the tokens in
both, and their largest |log p/q| (NaN where there is none).
"""


def _by_position(baseline: TopK, artifact: TopK) -> Parts:
    _check_same_positions(baseline, artifact)
    positions = len(baseline.window)
    result = np.empty((4, positions), dtype=np.float64)
    step = max(1, _CELLS_AT_ONCE // max(1, baseline.ids.shape[1] * artifact.ids.shape[1]))
    for start in range(0, positions, step):
        part = slice(start, start + step)
        result[:, part] = _kl(baseline.ids[part], baseline.logprobs[part], artifact.ids[part], artifact.logprobs[part])
    return result[0], result[1], result[2], result[3]


def flips_by_position(baseline: TopK, artifact: TopK) -> NDArray[np.bool_]:
    """Where the most probable token differs, [positions].

    Raises EvaluateError when the two were scored at different positions.
    """
    _check_same_positions(baseline, artifact)
    return np.asarray(baseline.ids[:, 0] != artifact.ids[:, 0])


def divergence(baseline: TopK, artifact: TopK, *, seed: int = 0, confidence: float = 0.90) -> tuple[Estimate, Estimate]:
    """(mean KL, flip rate) over all positions, with intervals from a bootstrap over windows."""
    k = min(baseline.ids.shape[1], artifact.ids.shape[1])
    kl = estimates.mean_by_window(kl_by_position(baseline, artifact), baseline.window, seed=seed, confidence=confidence)
    flips = estimates.rate_by_window(
        flips_by_position(baseline, artifact), baseline.window, seed=seed, confidence=confidence
    )
    return kl.model_copy(update={"method": f"{ESTIMATOR.format(k=k)}; {kl.method}"}), flips


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
    )


def _check_same_positions(baseline: TopK, artifact: TopK) -> None:
    if not np.array_equal(baseline.window, artifact.window):
        raise EvaluateError(
            f"baseline and artifact were scored at different positions "
            f"({len(baseline.window):,} and {len(artifact.window):,} of them)",
            hint=_AGAIN,
        )


_AGAIN = "Remove this result from the work store and evaluate again."
