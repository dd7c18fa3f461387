"""`qpack pull`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qpack.cli.render.text import emit
from qpack.core.records import Published
from registry.core.protocol import Resolved


def pulled(resolved: Resolved, folder: Path, signatures: Sequence[Path] | None = None, *, as_json: bool) -> None:
    """A release that was pulled, how to serve it, and its signatures where they were asked for."""
    if as_json:
        written = {} if signatures is None else {"signatures": [str(path.absolute()) for path in signatures]}
        emit({**resolved.model_dump(), "folder": str(folder.absolute()), **written})
        return
    print(f"Pulled {resolved.name}:{resolved.version} ({resolved.digest[:19]}) to {folder}")
    print(f"{folder}/README.md has the command that serves it.")
    if signatures is not None:
        print(f"Signatures: {', '.join(map(str, signatures)) or 'it has none'}")


def taken(found: Published, *, as_json: bool) -> None:
    """A release that came into the local registry."""
    if as_json:
        emit(found.model_dump())
        return
    print(f"{'Already there' if found.already_there else 'Pulled'}: {found.reference} ({found.digest[:19]})")
    print(f"`qpack show {found.reference}` shows it.")
