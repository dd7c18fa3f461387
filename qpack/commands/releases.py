"""Commands that take a release of the local registry."""

from __future__ import annotations

from typing import Annotated

import typer

from qpack.commands import options
from qpack.commands.options import AsJson, Ref


def show(ref: Ref, as_json: AsJson = False) -> None:
    """Show a release: its figures, gates and files."""
    from qpack import find
    from qpack.present import releases as present

    resolved, release, serving = find.read_release(options.registry_folder(), ref)
    present.shown(resolved, release, serving, as_json=as_json)


def list_releases(
    name: Annotated[str | None, typer.Argument(help="Only this release.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """List the releases in the local registry."""
    from qpack.present import releases as present
    from registry.registries import open_registry

    present.listed(open_registry("local", str(options.registry_folder())).list(name), as_json=as_json)
