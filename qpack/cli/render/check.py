"""`qpack check`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from qpack.cli.render.text import emit
from qpack.core.console import seconds
from qpack.pipeline.planned import Plan
from qpack.pipeline.requirements import Requirement

if TYPE_CHECKING:
    # Not at run time: it imports everything that a build needs.
    from qpack.pipeline.rehearse import Rehearsal
    from qpack.pipeline.text_counts import Counted
from qpack.cli.render.recipes import advice, texts, unchecked

_MIB = 2**20


def checked(
    plan: Plan, needed: list[Requirement], counted: Counted, tried: Rehearsal | None = None, *, as_json: bool
) -> None:
    """A valid recipe, with advice and what could not be checked."""
    if as_json:
        emit(
            {
                "recipe": str(plan.loaded.file.path),
                "ok": True,
                "engine": plan.engine.NAME,
                "target": plan.target,
                "kernels": [dataclasses.asdict(served) for served in plan.kernels],
                "unchecked": unchecked(plan, counted),
                "texts": [dataclasses.asdict(one) for one in counted.counts],
                "advice": [note.as_json() for note in plan.advice],
                "requirements": [dataclasses.asdict(need) for need in needed],
                "rehearsal": dataclasses.asdict(tried) if tried else None,
            }
        )
        return
    print(f"{plan.loaded.file.path}: ok")
    advice(plan, [need for need in needed if need.short])
    texts(counted)
    for left in unchecked(plan, counted):
        print(f"  not checked: {left}")
    if tried is not None:
        _rehearsed(tried)


def _rehearsed(tried: Rehearsal) -> None:
    rows = f" and the longest {tried.rows} of {tried.of_rows} rows (up to {tried.longest_row} tokens)"
    print(
        f"  rehearsed: {tried.engine} on {tried.layers} of {tried.of_layers} layers{rows if tried.rows else ''}"
        f" in {seconds(tried.seconds)}"
    )
    largest = f"layer {tried.largest_layer}, {tried.largest_layer_bytes / _MIB:,.1f} MiB, is the first of the largest"
    print(f"  peak of {tried.place} memory: {tried.peak_bytes / _MIB:,.0f} MiB measured; {largest}")
    if tried.expected_bytes is None:
        print(f"  not estimated: the whole build's peak ({tried.basis})")
        return
    less = f"; the limit is {(tried.have_bytes or 0) / _MIB:,.0f} MiB, less than that" if tried.short else ""
    print(f"  the whole build's peak: about {tried.expected_bytes / _MIB:,.0f} MiB, an estimate: {tried.basis}{less}")
