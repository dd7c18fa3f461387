"""`qpack doctor` and `qpack envs`: this machine and its engine environments."""

from __future__ import annotations

import dataclasses

from qpack.cli.render.text import emit, table
from qpack.doctor.machine import Finding
from qpack.runtime.environments import Environment


def examined(findings: list[Finding], *, as_json: bool) -> None:
    """What the doctor found."""
    if as_json:
        emit([dataclasses.asdict(finding) for finding in findings])
        return
    table(("", "", ""), [(f.severity, f.what, f.value) for f in findings])
    for finding in findings:
        if finding.hint:
            print(f"\n{finding.what}: {finding.hint}")


def environments(found: list[Environment], *, as_json: bool) -> None:
    """The engine environments."""
    if as_json:
        emit(
            [
                {"name": e.name, "variant": e.variant, "lock": e.digest, "made": e.ready, "folder": str(e.folder)}
                for e in found
            ]
        )
        return
    table(
        ("environment", "variant", "state", "lock", "folder"),
        ((e.name, e.variant, "made" if e.ready else "not made", e.digest[:12], str(e.folder)) for e in found),
    )
