"""`qpack history`."""

from __future__ import annotations

from collections.abc import Sequence

from qpack.cli.render.text import emit, table
from registry.core.protocol import Event


def history(events: Sequence[Event], *, as_json: bool) -> None:
    """The history, oldest first."""
    if as_json:
        emit([event.model_dump() for event in events])
        return
    if not events:
        print("No history yet.")
        return
    table(
        ("when", "who", "what", "release", "alias", "verdict", "why"),
        ((e.when, e.who, e.what, f"{e.name}:{e.version}", _alias(e), e.verdict, e.note) for e in events),
    )


def _alias(event: Event) -> str:
    if event.alias is None:
        return f"{', '.join(event.dropped)} (dropped)" if event.dropped else ""
    return f"{event.alias} (was {event.previous})" if event.previous else event.alias
