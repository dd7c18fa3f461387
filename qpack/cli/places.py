"""Releases that are elsewhere: the registry of a place, and how one is brought here before it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from qpack.cli import options

if TYPE_CHECKING:
    from registry.core.protocol import Remote
    from registry.hub.registry import HubSettings
    from registry.registries import Place

AnyRef = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="A release: name, name:version or name:alias; or hf://org/name[@tag], oci:// or "
        "mlflow://host[:port]/name[:tag], which is pulled into the local registry first.",
        show_default=False,
    ),
]


def at_hand(ref: str) -> str:
    """The release's name in the local registry. One in another registry (hf://, oci://) is imported first, verified,
    unless its digest is there already. The address of a server stays as it is.

    Raises RegistryError.
    """
    if "://" not in ref or ref.startswith(("http://", "https://")):
        return ref
    from registry.lifecycle.import_release import called_otherwise, import_release
    from registry.local.changes import whoami
    from registry.registries import Place, open_registry

    place, local = Place.parse(ref), open_registry("local", str(options.registry_folder()))
    with transfer_progress("pull", ref) as progress, closing(remote(place, progress)) as there:
        digest = there.resolve(str(place.ref)).digest
        known = next((one for one in local.list() if one.digest == digest and not one.unreadable), None)
        if known is not None:
            return f"{known.name}:{known.version}"
        drafts = options.home() / "pulls"
        taken = import_release(there, str(place.ref), local, drafts, actor=whoami(), note=f"from {ref}").reference
    if (line := called_otherwise(local.resolve(taken).annotations, taken)) is not None:
        options.report(line)
    return taken


def repository_of(ref: str) -> str | None:
    """`host/name` of `oci://host/name...`; None for a release that isn't named by an OCI registry."""
    from registry.registries import Place

    place = Place.parse(ref) if ref.startswith("oci://") else None
    return f"{place.at}/{place.ref.name}" if place and place.ref else None


def hub_of(ref: str) -> str | None:
    """`org/name` of `hf://org/name...`; None for a release that isn't named by the Hub."""
    from registry.registries import Place

    place = Place.parse(ref) if ref.startswith("hf://") else None
    return place.ref.name if place and place.ref else None


def remote(
    place: Place,
    progress: Callable[[int, int, str], None],
    *,
    plain_http: bool = False,
    hub: HubSettings | None = None,
    mount_from: tuple[str, ...] = (),
) -> Remote:
    """The registry of a place, which remembers uploads that broke off in qpack's home."""
    from registry.registries import open_remote

    return open_remote(
        place,
        plain_http=plain_http,
        hub=hub,
        sessions=options.home() / "uploads",
        mount_from=mount_from,
        progress=progress,
    )


@contextmanager
def transfer_progress(name: str, about: str) -> Iterator[Callable[[int, int, str], None]]:
    """Progress on stderr, in MiB: a line that moves, or one now and then."""
    from qpack.core.console import open_console

    with open_console() as console:
        console.stage(1, 1, name, about)
        last = -1

        def progress(done: int, total: int, what: str) -> None:
            nonlocal last
            if done >> 20 != last:
                last = done >> 20
                console.progress(last, total >> 20, f"Mi{what}" if what.startswith("bytes") else what)

        yield progress
        console.end("done")
