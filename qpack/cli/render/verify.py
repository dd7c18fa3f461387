"""`qpack verify`."""

from __future__ import annotations

from qpack.cli.render.text import emit, table
from registry.lifecycle.verification import Report


def verified(report: Report, *, as_json: bool) -> None:
    """Every finding; those that are wrong are an error afterwards."""
    if as_json:
        emit({**report.model_dump(), "ok": report.ok})
        return
    print(f"{report.reference}  {report.digest}")
    words = {True: "ok", False: "WRONG", None: "open"}
    table(("", "", ""), ((f"  {words[f.ok]}", f.what, f.why) for f in report.findings))
