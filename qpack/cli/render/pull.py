"""`qpack pull`."""

from __future__ import annotations

from pathlib import Path

from qpack.cli.render.text import emit
from qpack.core.records import Published
from registry.core.protocol import Resolved


def pulled(resolved: Resolved, folder: Path, *, as_json: bool) -> None:
    """A release that was pulled, and how to serve it."""
    if as_json:
        emit({**resolved.model_dump(), "folder": str(folder.absolute())})
        return
    print(f"Pulled {resolved.name}:{resolved.version} ({resolved.digest[:19]}) to {folder}")
    print(f"{folder}/README.md has the command that serves it.")


def taken(found: Published, *, as_json: bool) -> None:
    """A release that came into the local registry."""
    if as_json:
        emit(found.model_dump())
        return
    print(f"{'Already there' if found.already_there else 'Pulled'}: {found.reference} ({found.digest[:19]})")
    print(f"`qpack show {found.reference}` shows it.")
