"""`qpack remove`."""

from __future__ import annotations

from qpack.cli.render.text import emit
from registry.core.protocol import Removed


def removed(found: Removed, *, as_json: bool) -> None:
    """A version that is gone."""
    if as_json:
        emit(found.model_dump())
        return
    aliases = f", and {'its aliases' if len(found.dropped) > 1 else 'its alias'} {', '.join(found.dropped)}"
    print(f"Removed {found.name}:{found.version} ({found.digest[:19]}){aliases if found.dropped else ''}")
