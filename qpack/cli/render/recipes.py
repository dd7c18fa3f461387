"""What `qpack check` and `qpack plan` both print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpack.cli.render.text import line
from qpack.pipeline.planned import Plan
from qpack.pipeline.requirements import Requirement

if TYPE_CHECKING:
    # Not at run time: it imports everything that a build needs.
    from qpack.pipeline.text_counts import Counted


_MIB = 2**20


def unchecked(plan: Plan, counted: Counted) -> tuple[str, ...]:
    """What could not be checked."""
    return (*plan.unchecked, *([counted.unchecked] if counted.unchecked else []))


def texts(counted: Counted) -> None:
    """How many windows and rows the texts contain."""
    if counted.counts:
        print(f"  texts: {', '.join(f'{one.found} of {one.asked} {one.what}' for one in counted.counts)}")


def advice(plan: Plan, needed: list[Requirement]) -> None:
    """What may not be meant, and what the build needs."""
    for note in plan.advice:
        line("", str(note))
    for need in needed:
        has = f"; this machine has only {need.have / _MIB:,.0f} MiB" if need.short and need.have else ""
        line("", f"{need.what}: {need.bytes / _MIB:,.0f} MiB: {need.basis}{has}")
