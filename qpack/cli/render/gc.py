"""`qpack gc`."""

from __future__ import annotations

import sys
from pathlib import Path

from qpack.cli.render.text import emit
from registry.core.protocol import Collected

_MIB = 2**20


def collected(found: Collected, root: Path, *, as_json: bool) -> None:
    """What was removed, or would be."""
    if as_json:
        emit(found.model_dump())
        return
    would = "Would free" if found.dry_run else "Freed"
    print(f"{would} {found.bytes_freed / _MIB:,.1f} MiB in {root}")
    for what in (*found.blobs, *found.temporary):
        print(f"  {what}")
    for what in found.unreadable:
        print(f"  {what}", file=sys.stderr)
    if found.unreadable:
        hint = "Publish or pull that release again, or remove it: `qpack remove`."
        print(f"  {len(found.kept)} files that it may need are kept. {hint}", file=sys.stderr)
