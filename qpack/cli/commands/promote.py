"""`qpack promote`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qpack.cli.options import Alias, AsJson, Ref, Why, alias_demands, local_registry


def promote(
    ref: Ref,
    alias: Alias,
    policy: Annotated[
        list[Path] | None,
        typer.Option("--policy", metavar="FILE", help="Additional promotion policy. Repeatable.", show_default=False),
    ] = None,
    why: Why = "",
    as_json: AsJson = False,
) -> None:
    """Point an alias at a release that meets its policy."""
    from qpack.cli.render import alias as present
    from registry.lifecycle import promotion
    from registry.local.changes import whoami

    local = local_registry()
    demands = alias_demands(local, *(policy or []))
    present.moved(promotion.promote(local, ref, alias, demands, actor=whoami(), why=why), as_json=as_json)
