"""`qpack gc`."""

from __future__ import annotations

from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, local_registry


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed; remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete files that no release needs.

    Safe beside running publications.
    """
    from qpack.cli.render import gc as present
    from registry.core.transfers import left_behind

    local = local_registry()
    found = local.collect(dry_run=dry_run)
    # Interrupted pulls that weren't resumed.
    pulls, size = left_behind(options.home() / "pulls", dry_run=dry_run)
    temporary = (*found.temporary, *map(str, pulls))
    found = found.model_copy(update={"temporary": temporary, "bytes_freed": found.bytes_freed + size})
    present.collected(found, local.root, as_json=as_json)
