"""`qpack envs list`."""

from __future__ import annotations

from qpack.cli.render.text import emit, table
from qpack.runtime.environments import Environment


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
