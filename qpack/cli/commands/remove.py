"""`qpack remove`."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, PlainHttp


def remove(
    ref: Annotated[
        str,
        typer.Argument(
            metavar="REF|PLACE",
            help="A version: name:version, name@sha256:..., or oci://host[:port]/name:version.",
            show_default=False,
        ),
    ],
    why: Annotated[
        str, typer.Option("--why", metavar="TEXT", help="Reason, recorded in the history.", show_default=False)
    ],
    drop_aliases: Annotated[bool, typer.Option("--drop-aliases", help="Also remove aliases that point at it.")] = False,
    plain_http: PlainHttp = False,
    as_json: AsJson = False,
) -> None:
    """Remove a version from a registry."""
    from qpack.cli.places import remote
    from qpack.cli.render import remove as present
    from registry.core.bundle import nothing
    from registry.core.protocol import Ref as Parsed
    from registry.local.changes import whoami
    from registry.registries import Place, open_registry

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
        print(f"{place.at} keeps no history; the reason isn't recorded.", file=sys.stderr)
