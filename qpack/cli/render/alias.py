"""`qpack alias`, `promote` and `rollback`."""

from __future__ import annotations

from qpack.cli.render.text import emit
from registry.lifecycle.promotion import Moved


def moved(move: Moved, *, as_json: bool) -> None:
    """Where an alias points now, and where it did."""
    if as_json:
        emit({"alias": move.alias, "before": move.before, "verdict": move.verdict, **move.to.model_dump()})
        return
    here = f"{move.name}:{move.alias}"
    if move.before == move.to.version:
        print(f"{here} points at version {move.to.version} already")
        return
    before = f"was version {move.before}" if move.before else "new"
    print(f"{here} points at version {move.to.version} ({move.to.digest[:19]}), {before}")
