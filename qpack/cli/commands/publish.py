"""`qpack publish`."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, PlainHttp, Ref
from qpack.cli.places import remote, talking


def publish(
    ref: Ref,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="PLACE",
            help="Destination: hf://org/name, oci://host[:port]/name[:tag], or a folder.",
            show_default=False,
        ),
    ],
    alias: Annotated[
        str | None, typer.Option("--alias", help="Alias to set at the destination.", show_default=False)
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Create new Hub repositories as public.")] = False,
    mount_from: Annotated[
        list[str] | None,
        typer.Option("--mount-from", metavar="NAME", help="OCI repository to mount existing blobs from."),
    ] = None,
    plain_http: PlainHttp = False,
    as_json: AsJson = False,
) -> None:
    """Copy a release to another registry."""
    from qpack.cli.render import publish as present
    from registry.core.protocol import PushRequest
    from registry.local.changes import whoami
    from registry.registries import Place, open_registry
    from registry.release import release_files

    place = Place.parse(to)
    local = open_registry("local", str(options.registry_folder()))
    resolved = local.resolve(ref)
    bundle = local.bundle(resolved)
    release_files.check(ref, (record.path for record in bundle.contents.files))
    with talking("publish", f"{resolved.name}:{resolved.version} to {to}") as progress:
        if place.ref is None:
            other = open_registry("local", place.at)
            found = other.put(
                bundle, PushRequest(resolved.name, resolved.version, alias, actor=whoami(), note=f"from {ref}")
            )
        else:
            version, alias = place.version_and_alias(resolved.version, alias)
            mounts = tuple(mount_from or ())
            with closing(remote(place, progress, plain_http=plain_http, public=public, mount_from=mounts)) as there:
                found = there.put(bundle, PushRequest(place.ref.name, version, alias, actor=whoami()))
    present.published(found, as_json=as_json)
