"""Commands that take a release of a registry, to show it or to remove it."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Annotated

import typer

from qpack.commands import options
from qpack.commands.options import AsJson, PlainHttp, Ref


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


def remove(
    ref: Annotated[
        str,
        typer.Argument(
            metavar="REF|PLACE",
            help="A version: name:version, name@sha256:..., or oci://host[:port]/name:version.",
            show_default=False,
        ),
    ],
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="The reason, for the history.", show_default=False)],
    drop_aliases: Annotated[bool, typer.Option("--drop-aliases", help="Remove aliases that point at it.")] = False,
    plain_http: PlainHttp = False,
    as_json: AsJson = False,
) -> None:
    """Remove a version from a registry."""
    from qpack.commands.places import remote
    from qpack.present import lifecycle as present
    from registry.changes import whoami
    from registry.packed import nothing
    from registry.registries import Place, open_registry
    from registry.registry import Ref as Parsed

    if "://" not in ref:
        local = open_registry("local", str(options.registry_folder()))
        gone = local.remove(Parsed.parse(ref), drop_aliases=drop_aliases, actor=whoami(), note=why)
        present.removed(gone, as_json=as_json)
        if not as_json:
            print("`qpack gc` frees what it held.", file=sys.stderr)
        return
    place = Place.parse(ref)
    with closing(remote(place, nothing, plain_http=plain_http)) as there:
        gone = there.remove(place.named, drop_aliases=drop_aliases, actor=whoami(), note=why)
    present.removed(gone, as_json=as_json)
    if not as_json:
        print(f"{place.at} keeps no history: the reason is recorded nowhere.", file=sys.stderr)
