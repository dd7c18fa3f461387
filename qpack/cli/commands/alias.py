"""`qpack alias`."""

from __future__ import annotations

from typing import Annotated

import typer

from qpack.cli.options import Alias, AsJson, Ref, Why, local_registry


def alias(
    ref: Ref,
    alias: Alias,
    expect: Annotated[
        str | None,
        typer.Option(
            "--expect",
            metavar="VERSION",
            help="Require the alias to point at VERSION ('none': absent).",
            show_default=False,
        ),
    ] = None,
    why: Why = "",
    as_json: AsJson = False,
) -> None:
    """Point an alias at a release, without checks.

    An alias that a policy guards needs `promote`.
    """
    from qpack.cli.render import alias as present
    from registry.lifecycle import promotion
    from registry.local.changes import whoami

    expected = "" if expect == "none" else expect
    present.moved(promotion.move(local_registry(), ref, alias, expected, actor=whoami(), why=why), as_json=as_json)
