"""`qpack publish`."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated, Literal

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, PlainHttp, Ref
from qpack.cli.places import remote, transfer_progress
from qpack.core.errors import invalid_option


def publish(
    ref: Ref,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="PLACE",
            help="Destination: hf://org/name, oci:// or mlflow://host[:port]/name[:tag], or a folder.",
            show_default=False,
        ),
    ],
    form: Annotated[
        Literal["release", "image"],
        typer.Option("--as", help="What to publish: release, or release and OCI image (for oci://)."),
    ] = "release",
    alias: Annotated[
        str | None, typer.Option("--alias", help="Alias to set at the destination.", show_default=False)
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Create new Hub repositories as public.")] = False,
    as_pr: Annotated[bool, typer.Option("--as-pr", help="Open a pull request on the Hub.")] = False,
    branch: Annotated[
        str | None, typer.Option(metavar="NAME", help="Hub branch to publish to.", show_default="main")
    ] = None,
    gated: Annotated[
        Literal["auto", "manual"] | None,
        typer.Option(help="Gate new Hub repositories.", show_default=False),
    ] = None,
    collection: Annotated[
        str | None, typer.Option(metavar="SLUG", help="Hub collection to add it to.", show_default=False)
    ] = None,
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
    from registry.hub.registry import HubSettings
    from registry.local.changes import whoami
    from registry.registries import Place, open_oci, open_registry
    from registry.release import release_files

    place = Place.parse(to)
    if form == "image" and place.kind != "oci":
        raise invalid_option("--as", "an image is published to an OCI registry", "Use --to oci://HOST/NAME.")
    local = open_registry("local", str(options.registry_folder()))
    resolved = local.resolve(ref)
    bundle = local.bundle(resolved)
    release_files.check(ref, (record.path for record in bundle.contents.files))
    if (as_pr or branch is not None or gated or collection) and place.kind != "hf":
        option = "--as-pr" if as_pr else "--branch" if branch is not None else "--gated" if gated else "--collection"
        raise invalid_option(option, "this is for the Hub", "Use --to hf://ORG/NAME.")
    hub = HubSettings(
        public=public, gated=gated, collection=collection, as_pr=as_pr, branch="main" if branch is None else branch
    )
    image = None
    with transfer_progress("publish", f"{resolved.name}:{resolved.version} to {to}") as progress:
        if place.ref is None:
            other = open_registry("local", place.at)
            found = other.put(
                bundle, PushRequest(resolved.name, resolved.version, alias, actor=whoami(), note=f"from {ref}")
            )
        else:
            version, alias = place.version_and_alias(resolved.version, alias)
            mounts = tuple(mount_from or ())
            with closing(remote(place, progress, plain_http=plain_http, hub=hub, mount_from=mounts)) as there:
                found = there.put(bundle, PushRequest(place.ref.name, version, alias, actor=whoami()))
            if form == "image":
                with closing(open_oci(place.at, plain_http=plain_http, progress=progress)) as oci:
                    image = oci.put_image(bundle, place.ref.name, found.version)
    present.published(found, image, as_json=as_json)
