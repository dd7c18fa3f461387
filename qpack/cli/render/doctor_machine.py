"""`qpack doctor`: this machine."""

from __future__ import annotations

from typing import Any

from qpack.cli.render.text import emit, table
from qpack.doctor.machine import Checked


def examined(checked: list[Checked], *, as_json: bool) -> None:
    """What the doctor found."""
    if as_json:
        emit([_json(each) for each in checked])
        return
    table(("", "", ""), [(each.problem.severity if each.problem else "ok", each.what, each.value) for each in checked])
    for each in checked:
        if each.problem:
            print(f"\n{each.problem}")


def _json(checked: Checked) -> dict[str, Any]:
    problem = checked.problem
    return {
        "severity": problem.severity if problem else "ok",
        "code": problem.code.name if problem else None,
        "what": checked.what,
        "value": checked.value,
        "hint": problem.hint if problem else "",
    }
