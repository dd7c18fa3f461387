"""`qpack reproduce`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpack.cli.render.text import emit, table
from qpack.core.errors import GateUndecided, QpackError, RegistryError
from qpack.core.problems import Code
from qpack.core.records import Estimate

if TYPE_CHECKING:
    from qpack.pipeline.reproduce import Reproduction  # not at run time: heavy

_NOT_REPRODUCED = Code("not-reproduced", "A rebuilt artifact has other weights than its release.")


def reproduced(found: Reproduction, *, as_json: bool) -> None:
    """How a rebuild compares to the release."""
    if as_json:
        emit(found.model_dump())
        return
    print(f"{found.reference}: {found.outcome}, rebuilt in {found.seconds:.0f} s")
    table(
        ("input", "then", "now", ""), ((i.what, i.then, i.now, "same" if i.same else "DIFFERS") for i in found.inputs)
    )
    print(f"artifact  {found.artifact_then[:12]}  {found.artifact_now[:12]}")
    for path in found.files:
        print(f"  {path} has other bytes")
    if found.tensors is not None:
        t = found.tensors
        print(f"{len(t.differences)} of {t.tensors} tensors differ, in {t.share:.2g} of all elements (1 is all)")
        for d in sorted(t.differences, key=lambda d: -d.elements)[:8]:
            apart = f", {d.relative:.2e} apart (relative norm)" if d.relative is not None else ""
            print(f"  {d.name}: {d.why}; {d.elements:,} of {d.of:,} elements{apart}")
    if found.equivalence is not None:
        e = found.equivalence
        figures = (
            ("accuracy, then minus now", e.accuracy, f"within {e.margins.accuracy:g}", e.answers["accuracy"]),
            ("perplexity, now over then", e.perplexity, f"within {e.margins.perplexity:.1%}", e.answers["perplexity"]),
        )
        table(
            ("figure", "value", "90 % interval", "margin", ""),
            ((name, f"{x.value:+z.4f}", _interval(x), margin, answer) for name, x, margin, answer in figures),
        )


def _interval(estimate: Estimate) -> str:
    if estimate.interval is None:
        return "none"
    return f"[{estimate.interval.low:+z.4f}, {estimate.interval.high:+z.4f}]"


def refusal(found: Reproduction) -> QpackError | None:
    """The error that a rebuild ends with whose weights differ, unless the samples say that it makes no difference."""
    if found.outcome == "different":
        return RegistryError(
            _NOT_REPRODUCED,
            f"{found.reference} was not reproduced: its weights differ",
            hint="Other hardware or another number of cores can cause that; differing inputs are listed.",
        )
    if found.outcome == "undecided":
        return GateUndecided(
            _NOT_REPRODUCED,
            f"{found.reference}: its weights differ, and the samples don't decide whether that matters",
            hint="Use a recipe with more samples and windows, or larger --accuracy-margin and --perplexity-margin.",
        )
    return None
