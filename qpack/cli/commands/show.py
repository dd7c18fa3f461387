"""`qpack show`."""

from __future__ import annotations

from qpack.cli import options
from qpack.cli.options import AsJson, Ref


def show(ref: Ref, as_json: AsJson = False) -> None:
    """Show a release's figures, gates and files."""
    from qpack.cli.render import show as present
    from qpack.pipeline import find

    resolved, release, serving = find.read_release(options.registry_folder(), ref)
    files = options.local_registry().contents(resolved).files
    present.shown(resolved, release, serving, files, as_json=as_json)
