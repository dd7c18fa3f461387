"""The record of calibration rows that also stand in what a model is measured on; `evals.contamination` makes it."""

from __future__ import annotations

from qpack.frozen import Frozen


class Overlap(Frozen):
    """An item whose text stands in a calibration row too: the row's digest (`Calibrated.row_digests`), the `share` of
    the item's runs of words that are in calibration rows, and the first such run.
    """

    item: str
    row: str
    share: float
    words: str


class OverlapSet(Frozen):
    """One eval set (a task, or the held-out text), held against the calibration rows. `too_short` items of all `items`
    have too few words to be told apart by them.
    """

    name: str
    items: int
    too_short: int
    overlaps: tuple[Overlap, ...]


class Contamination(Frozen):
    """Calibration rows that also stand in eval sets (`evals.contamination`). `unchecked` sets have texts that only
    lm-eval knows.
    """

    ngram: int
    rows: int
    sets: tuple[OverlapSet, ...]
    unchecked: tuple[str, ...]
