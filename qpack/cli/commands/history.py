"""`qpack history`."""

from __future__ import annotations

from typing import Annotated

import typer

from qpack.cli.options import AsJson, local_registry


def history(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only this release.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Show who changed what in the registry."""
    from qpack.cli.render import history as present

    local = local_registry()
    events = local.history(name)
    if name is not None and not events:
        local.list(name)
    present.history(events, as_json=as_json)
