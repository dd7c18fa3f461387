"""`qpack report`."""

from __future__ import annotations

from pathlib import Path

from qpack.cli.render.text import emit
from qpack.core.errors import RegistryError
from qpack.core.records import Release
from registry.core.protocol import check_name


def reported(release: Release, output: Path | None, *, as_json: bool) -> None:
    """Write the HTML report."""
    from evals.report import html_report

    target = output or Path(f"{_file_name(release.name)}-report.html")
    try:
        target.write_text(html_report.render(release), encoding="utf-8")
    except OSError as error:
        raise RegistryError(f"{target}: {error.strerror}", hint="Name another file with --output.") from error
    missed = [gate for gate in release.verdict.gates if gate.outcome != "pass"]
    if as_json:
        emit({"report": str(target.absolute()), "verdict": release.verdict.model_dump()})
        return
    print(f"Wrote {target}: {release.verdict.outcome}")
    for gate in missed:
        print(f"  {gate.gate}: {gate.why}")


def _file_name(name: str) -> str:
    """A release calls itself what it likes: by that name no other folder is written to."""
    try:
        return check_name(name).replace("/", "-")
    except RegistryError:
        return "release"
