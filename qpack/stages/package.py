"""The release folder: artifact, manifests, card and licence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qpack import describe
from qpack.needed import need
from qpack.results import Release
from registry import release as releases

if TYPE_CHECKING:
    from qpack.work import Build


def make(build: Build, out: Path) -> Release:
    """Lay the release out in `out/release`. Raises QuantizeError."""
    made, licence = describe.release(build), build.plan.source.licence_file
    folder = out / "release"
    folder.mkdir()
    releases.lay_out(
        folder,
        checkpoint=need(build.quantized).folder / "checkpoint",
        source=need(build.fetched).folder / "checkpoint",
        release=made,
        serving=describe.published_serving(build),
        license_text=licence.read_text(errors="replace") if licence else None,
    )
    return made
