"""`qpack pull`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, PlainHttp
from qpack.cli.places import remote, transfer_progress
from qpack.core.errors import invalid_option
from qpack.core.problems import ALREADY_EXISTS

if TYPE_CHECKING:
    from registry.core.modelpack import Contents
    from registry.local.registry import LocalRegistry


def pull(
    ref: Annotated[
        str,
        typer.Argument(
            metavar="REF|PLACE",
            help="A local release, hf://org/name[@tag], oci:// or mlflow://host[:port]/name[:tag].",
            show_default=False,
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER",
            help="A new or empty folder (default: the local registry).",
            show_default=False,
        ),
    ] = None,
    signatures: Annotated[
        Path | None,
        typer.Option("--signatures", metavar="FOLDER", help="Also write its signatures there.", show_default=False),
    ] = None,
    plain_http: PlainHttp = False,
    as_json: AsJson = False,
) -> None:
    """Download and verify a release.

    Writes all files or none.
    """
    from qpack.cli.render import pull as present
    from qpack.core.errors import RegistryError
    from registry.lifecycle.import_release import called_otherwise, import_release
    from registry.local.changes import whoami
    from registry.local.registry import LocalRegistry
    from registry.registries import Place
    from registry.release import release_files

    def wanted(contents: Contents) -> None:
        release_files.check(ref, (record.path for record in contents.files))

    local = LocalRegistry(options.registry_folder())
    if "://" not in ref:
        if folder is None:
            raise RegistryError(
                ALREADY_EXISTS, f"{ref} is in the local registry already", hint="Name a folder to write its files to."
            )
        found = local.resolve(ref)
        exact = f"{found.name}:{found.version}@{found.digest}"
        wanted(local.contents(exact))
        pulled = local.pull(exact, folder)
        present.pulled(pulled, folder, _write_signatures(local, exact, signatures), as_json=as_json)
        return
    if signatures is not None:
        raise invalid_option("--signatures", "the release is not local", "Pull it into the local registry first.")
    place = Place.parse(ref)
    with transfer_progress("pull", ref) as progress, closing(remote(place, progress, plain_http=plain_http)) as there:
        if folder is not None:
            resolved = there.pull(str(place.ref), folder, wanted)
        else:
            drafts, note = options.home() / "pulls", f"from {ref}"
            taken = import_release(there, str(place.ref), local, drafts, actor=whoami(), note=note)
    if folder is not None:
        present.pulled(resolved, folder, as_json=as_json)
    else:
        present.taken(taken, as_json=as_json)
        if (line := called_otherwise(local.resolve(taken.reference).annotations, taken.reference)) is not None:
            options.report(line)


def _write_signatures(local: LocalRegistry, ref: str, folder: Path | None) -> tuple[Path, ...] | None:
    """Write the release's sigstore bundles as `1.json`, `2.json` and so on, in the order of signing."""
    if folder is None:
        return None
    from registry.lifecycle.signing import BUNDLE_TYPE

    paths = []
    for number, bundle in enumerate(local.attached(ref, BUNDLE_TYPE), 1):
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(folder / f"{number}.json")
        paths[-1].write_bytes(bundle)
    return tuple(paths)
