"""Greedy continuations of held-out text: where artifact and baseline diverge, and which windows differ most."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from evals.measure.divergence import TopK, flips_by_position, kl_by_position
from qpack.core.errors import EvaluateError
from qpack.core.findings import Continuations, Continued, ContinuedWindow, TextDomain
from qpack.core.problems import Code

_OTHER_WINDOWS = Code("other-windows", "Baseline and artifact continued different windows of text.")

WORST = 5


def compare(
    baseline: Continuations,
    artifact: Continuations,
    before: TopK,
    after: TopK,
    domains: Sequence[TextDomain] = (),
    count: int = WORST,
) -> Continued:
    """Compare continuations window by window; the worst windows are those with the largest mean divergence.

    Raises EvaluateError when the two continued different windows.
    """
    pairs = list(zip(baseline.windows, artifact.windows, strict=False))
    asked = [(len(c.windows), c.tokens, [(x.before, x.follows) for x in c.windows]) for c in (baseline, artifact)]
    if asked[0] != asked[1]:
        raise EvaluateError(
            _OTHER_WINDOWS, "baseline and artifact continued different windows", hint="Evaluate both again."
        )
    kl, flips = kl_by_position(before, after), flips_by_position(before, after)
    means = [float(kl[before.window == window].mean()) for window in range(len(pairs))]
    alike = [
        len(list(takewhile(lambda two: two[0] == two[1], zip(b.tokens, a.tokens, strict=False)))) for b, a in pairs
    ]
    order = sorted(range(len(pairs)), key=lambda window: (-means[window], window))
    return Continued(
        tokens=baseline.tokens,
        windows=len(pairs),
        same=sum(b.tokens == a.tokens for b, a in pairs),
        alike=float(np.mean(alike)) if alike else 0.0,
        worst=tuple(
            ContinuedWindow(
                window=window,
                domain=domain_of(window, domains),
                kl=means[window],
                flips=float(flips[before.window == window].mean()),
                before=pairs[window][0].before,
                follows=pairs[window][0].follows,
                baseline=pairs[window][0].text,
                artifact=pairs[window][1].text,
                alike=alike[window],
            )
            for window in order[:count]
        ),
    )


def domain_of(window: int, domains: Sequence[TextDomain]) -> str:
    """The name of a window's domain; empty where there are none."""
    end = 0
    for domain in domains:
        end += domain.windows
        if window < end:
            return domain.name
    return ""
