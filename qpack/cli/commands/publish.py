"""Commands that send a release somewhere else, or bring one from there."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, PlainHttp, Ref
from qpack.cli.places import remote, talking

if TYPE_CHECKING:
    from registry.core.modelpack import Contents


def publish(
    ref: Ref,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="PLACE",
            help="hf://org/name, oci://host[:port]/name[:tag], or the folder of another local registry.",
            show_default=False,
        ),
    ],
    alias: Annotated[
        str | None, typer.Option("--alias", help="Point this alias there at the release.", show_default=False)
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository on the Hub public; the default is private.")
    ] = False,
    mount_from: Annotated[
        list[str] | None,
        typer.Option("--mount-from", metavar="NAME", help="A repository of the same OCI registry to share files with."),
    ] = None,
    plain_http: PlainHttp = False,
    as_json: AsJson = False,
) -> None:
    """Publish a release of the local registry to the Hub, to an OCI registry or to another local registry."""
    from qpack.cli.render import publish as present
    from registry.local.changes import whoami
    from registry.registries import Place, open_registry
    from registry.release import release_files

    place = Place.parse(to)
    local = open_registry("local", str(options.registry_folder()))
    resolved = local.resolve(ref)
    packed = local.packed(resolved)
    release_files.check(ref, (record.path for record in packed.contents.files))
    with talking("publish", f"{resolved.name}:{resolved.version} to {to}") as progress:
        if place.ref is None:
            other = open_registry("local", place.at)
            found = other.put(packed, resolved.name, resolved.version, alias, actor=whoami(), note=f"from {ref}")
        else:
            version, alias = place.version_and_alias(resolved.version, alias)
            mounts = tuple(mount_from or ())
            with closing(remote(place, progress, plain_http=plain_http, public=public, mount_from=mounts)) as there:
                found = there.put(packed, place.ref.name, version, alias, actor=whoami())
    present.published(found, as_json=as_json)


def pull(
    ref: Annotated[
        str,
        typer.Argument(
            metavar="REF|PLACE",
            help="A release of the local registry, hf://org/name[@tag], or oci://host[:port]/name[:tag].",
            show_default=False,
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A folder that is absent or empty. Without one, a PLACE is pulled into the local registry.",
            show_default=False,
        ),
    ] = None,
    plain_http: PlainHttp = False,
    as_json: AsJson = False,
) -> None:
    """Write a release's files to FOLDER, verified: all of them or nothing."""
    from qpack.cli.render import publish as present
    from qpack.core.errors import RegistryError
    from registry.lifecycle.import_release import bring, called_otherwise
    from registry.local.changes import whoami
    from registry.local.registry import LocalRegistry
    from registry.registries import Place
    from registry.release import release_files

    def wanted(contents: Contents) -> None:
        release_files.check(ref, (record.path for record in contents.files))

    local = LocalRegistry(options.registry_folder())
    if "://" not in ref:
        if folder is None:
            raise RegistryError(f"{ref} is in the local registry already", hint="Name a folder to write its files to.")
        found = local.resolve(ref)
        exact = f"{found.name}:{found.version}@{found.digest}"
        wanted(local.contents(exact))
        present.pulled(local.pull(exact, folder), folder, as_json=as_json)
        return
    place = Place.parse(ref)
    with talking("pull", ref) as progress, closing(remote(place, progress, plain_http=plain_http)) as there:
        if folder is not None:
            resolved = there.pull(str(place.ref), folder, wanted)
        else:
            drafts, note = options.home() / "pulls", f"from {ref}"
            taken = bring(there, str(place.ref), local, drafts, actor=whoami(), note=note)
    if folder is not None:
        present.pulled(resolved, folder, as_json=as_json)
    else:
        present.taken(taken, as_json=as_json)
        if (line := called_otherwise(local.resolve(taken.reference).annotations, taken.reference)) is not None:
            options.tell(line)
