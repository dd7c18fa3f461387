"""The accuracy tasks share by share, until the gates are decided."""

from __future__ import annotations

from collections.abc import Callable

from evals.gates import interim_analysis
from evals.measure.eval_specs import Share
from qpack.core.records import Accuracy


def measure(
    ask: Callable[[Share], Accuracy], stop: Callable[[Accuracy], bool], report: Callable[[str], None]
) -> Accuracy:
    """`ask` measures one share and stores it; `stop` says whether the gates are decided."""
    parts: list[Accuracy] = []
    for share in interim_analysis.SHARES:
        parts.append(ask(share))
        whole = interim_analysis.merge(parts)
        report(interim_analysis.sentence(whole))
        if stop(whole):
            break
    return whole
