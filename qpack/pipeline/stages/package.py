"""The release folder: artifact, manifests, card and licence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qpack.core.records import Release
from qpack.pipeline import release_records
from qpack.pipeline.needed import need
from registry.release import release_folder

if TYPE_CHECKING:
    from qpack.pipeline.state import Build


def make(build: Build, out: Path) -> Release:
    """Lay the release out in `out/release`. Raises QuantizeError."""
    made, licence = release_records.release(build), build.plan.source.licence_file
    folder = out / "release"
    folder.mkdir()
    release_folder.lay_out(
        folder,
        checkpoint=need(build.quantized).folder / "checkpoint",
        source=need(build.fetched).folder / "checkpoint",
        release=made,
        serving=release_records.published_serving(build),
        license_text=licence.read_text(errors="replace") if licence else None,
    )
    return made
