"""`qpack show`."""

from __future__ import annotations

from typing import Any

from qpack.cli.render.figures import figures
from qpack.cli.render.text import emit
from qpack.core.records import Release
from registry.core.protocol import Resolved


def shown(resolved: Resolved, release: Release, serving: dict[str, Any], *, as_json: bool) -> None:
    """A release."""
    if as_json:
        emit({**resolved.model_dump(), "release": release.model_dump(mode="json"), "serving": serving})
        return
    q, source = release.quantized, release.source
    print(f"{resolved.name}:{resolved.version}  {resolved.digest}")
    print(f"  made      {release.created} by qpack {release.qpack_version}")
    print(f"  from      {source.resolved} ({source.architecture}, {source.parameters / 1e6:,.0f} million parameters)")
    groups = f" in groups of {q.group_size}" if q.group_size else ""
    layers = f"{q.quantized_layers} of {q.linear_layers} linear layers"
    how = f"{q.scheme}, not quantized" if q.method == "none" else f"{q.method} {q.scheme}{groups}, {layers}"
    print(f"  with      {q.engine} {q.engine_version}: {how}")
    hardware = release.artifact.hardware
    cores = "1 core" if hardware.cores == 1 else f"{hardware.cores} cores"
    print(f"  served by {release.artifact.server} on {hardware.name}, {cores}")
    if resolved.aliases:
        print(f"  aliases   {', '.join(resolved.aliases)}")
    if release.forced:
        print("  PUBLISHED ALTHOUGH ITS GATES DID NOT PASS")
    figures(release)
