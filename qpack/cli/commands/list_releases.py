"""`qpack list`."""

from __future__ import annotations

from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson


def list_releases(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only this release.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """List releases in the local registry."""
    from qpack.cli.render import list_releases as present
    from registry.registries import open_registry

    present.listed(open_registry("local", str(options.registry_folder())).list(name), as_json=as_json)
