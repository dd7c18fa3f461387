"""`qpack rollback`."""

from __future__ import annotations

from typing import Annotated

import typer

from qpack.cli.options import Alias, AsJson, Why, alias_demands, local_registry

Name = Annotated[str, typer.Argument(metavar="NAME", help="A release without version.", show_default=False)]


def rollback(name: Name, alias: Alias, why: Why = "", as_json: AsJson = False) -> None:
    """Point an alias at its previous version.

    The alias's policy applies. Repeat to go further back.
    """
    from qpack.cli.render import alias as present
    from registry.lifecycle import promotion
    from registry.local.changes import whoami

    local = local_registry()
    moved = promotion.rollback(local, name, alias, alias_demands(local), actor=whoami(), why=why)
    present.moved(moved, as_json=as_json)
