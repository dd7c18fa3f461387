"""`qpack show`."""

from __future__ import annotations

from collections.abc import Sequence

from qpack.cli.render.figures import figures
from qpack.cli.render.text import emit, table
from qpack.core.jsonfile import JsonObject
from qpack.core.records import FileRecord, Release
from quantize.schemes.schemes import AS_IT_IS
from registry.core.protocol import Resolved


def shown(
    resolved: Resolved, release: Release, serving: JsonObject, files: Sequence[FileRecord], *, as_json: bool
) -> None:
    """A release, and its files with their sizes."""
    if as_json:
        listed = [file.model_dump() for file in files]
        said = {"release": release.model_dump(mode="json"), "serving": serving, "files": listed}
        emit({**resolved.model_dump(), **said})
        return
    q, source = release.quantized, release.source
    print(f"{resolved.name}:{resolved.version}  {resolved.digest}")
    print(f"  made      {release.created} by qpack {release.qpack_version}")
    print(f"  from      {source.resolved} ({source.architecture}, {source.parameters / 1e6:,.0f} million parameters)")
    groups = f" in groups of {q.group_size}" if q.group_size else ""
    layers = f"{q.quantized_layers} of {q.linear_layers} linear layers"
    as_stored = "as it is stored" if q.scheme == AS_IT_IS else f"{q.scheme}, not quantized"
    how = as_stored if q.method == "none" else f"{q.method} {q.scheme}{groups}, {layers}"
    if q.method == "online":
        how = f"the source's files, which vLLM quantizes to {q.scheme} as it loads"
    print(f"  with      {q.engine} {q.engine_version}: {how}")
    hardware = release.artifact.hardware
    cores = "1 core" if hardware.cores == 1 else f"{hardware.cores} cores"
    print(f"  served by {release.artifact.server} on {hardware.name}, {cores}")
    if resolved.aliases:
        print(f"  aliases   {', '.join(resolved.aliases)}")
    if release.forced:
        print("  PUBLISHED ALTHOUGH ITS GATES DID NOT PASS")
    figures(release)
    print()
    table(("file", "bytes"), ((file.path, f"{file.size_bytes:,}") for file in files))
