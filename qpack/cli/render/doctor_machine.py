"""`qpack doctor`: this machine."""

from __future__ import annotations

import dataclasses

from qpack.cli.render.text import emit, table
from qpack.doctor.machine import Finding


def examined(findings: list[Finding], *, as_json: bool) -> None:
    """What the doctor found."""
    if as_json:
        emit([dataclasses.asdict(finding) for finding in findings])
        return
    table(("", "", ""), [(f.severity, f.what, f.value) for f in findings])
    for finding in findings:
        if finding.hint:
            print(f"\n{finding.what}: {finding.hint}")
