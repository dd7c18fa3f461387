"""`qpack verify`."""

from __future__ import annotations

from qpack.cli.render.text import emit, table
from registry.lifecycle.verification import Checked, Report


def verified(report: Report, *, as_json: bool) -> None:
    """Every part, and notes. What is wrong is the error that the command ends with, and isn't printed twice."""
    if as_json:
        parts = [
            {"what": part.what, "ok": part.ok, "why": _why(part), "problems": [p.as_json() for p in part.problems]}
            for part in report.parts
        ]
        emit({"reference": report.reference, "digest": report.digest, "findings": parts, "ok": report.ok})
        return
    print(f"{report.reference}  {report.digest}")
    words = {True: "ok", False: "WRONG", None: "open"}
    table(
        ("", "", ""),
        ((f"  {words[part.ok]}", part.what, "" if part.problems else part.right) for part in report.parts),
    )
    for problem in report.problems:
        if problem.severity != "error":
            print(problem)


def _why(part: Checked) -> str:
    return "; ".join(problem.text for problem in part.problems) or part.right
