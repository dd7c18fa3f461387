"""The gates that a verdict rests on, as problems of an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from qpack.core.problems import Code, Location, Problem
from qpack.core.records import Verdict

GATE_FAILED = Code("gate-failed", "A figure misses the bound of its gate.")
GATE_UNDECIDED = Code("gate-undecided", "The samples don't decide a gate.")


def missed(verdict: Verdict, where: Callable[[str], Location]) -> tuple[Problem, ...]:
    """The gates that decided a verdict other than pass, located at their bounds."""
    code = GATE_FAILED if verdict.outcome == "fail" else GATE_UNDECIDED
    return tuple(
        Problem(code, gate.why, _place(where(gate.gate.partition("[")[0]), gate.gate))
        for gate in verdict.gates
        if gate.outcome == verdict.outcome
    )


def _place(bound: Location, gate: str) -> Location:
    """`recipe.yaml:31: flip_rate`, or `--set gates.flip_rate`; with the task, where each task has its own verdict."""
    if not bound.option:
        return replace(bound, key=(), name=gate)
    return replace(bound, name=gate if "[" in gate else "")
