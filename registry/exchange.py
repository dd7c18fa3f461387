"""A release on its way from a remote registry into the local one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qpack.errors import RegistryError
from qpack.results import Published
from registry import release as releases
from registry import release_files
from registry.modelpack import TITLE, Contents
from registry.registry import Named, Registry, Remote, check_name
from registry.transfers import kept_until_done


def bring(remote: Remote, ref: Named, local: Registry, drafts: Path, *, actor: str, note: str) -> Published:
    """Put the release `ref` of `remote` into `local`, under its own name and version.

    What has arrived when it breaks off waits in `drafts`, and the next try goes on. Raises RegistryError before
    anything is fetched when the version is there with other content, since versions never change; and, with nothing
    put, for a release with files that none has.
    """
    resolved = remote.resolve(ref)
    name = local_name(resolved.annotations, resolved.name)
    for there in local.list():
        if (there.name, there.version) == (name, resolved.version) and there.digest != resolved.digest:
            raise RegistryError(
                f"{name}:{resolved.version} is in the local registry with other content ({there.digest}), and versions"
                " never change",
                hint="Name a folder to pull it to, or use another registry: set QPACK_REGISTRY.",
            )
    with kept_until_done(drafts / resolved.digest.removeprefix("sha256:")[:32]) as folder:
        packed = remote.fetched(resolved, folder)
        if packed.digest != resolved.digest:
            raise RegistryError(f"{resolved.exact} has moved meanwhile", hint="Run the same command again.")
        expected_files(packed.contents, str(ref), _read(folder / "release.json"))
        return local.put(packed, name, resolved.version, None, actor=actor, note=note, consume=True)


def expected_files(contents: Contents, ref: str, manifest: bytes | None) -> None:
    """Raise RegistryError for a release with files that none has, or that its release manifest doesn't list.

    `manifest` is that of the release; one that can't be read lists nothing, and leaves it at the names.
    """
    try:
        listed = None if manifest is None else {f.path for f in releases.read(manifest, ref).quantized.files}
    except RegistryError:
        listed = None
    release_files.check(ref, (record.path for record in contents.files), listed)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def local_name(annotations: Mapping[str, str], name: str) -> str:
    """What a release from elsewhere is called here: its own title, or else the last part of its name there."""
    try:
        return check_name(annotations.get(TITLE, ""))
    except RegistryError:
        return check_name(name.rpartition("/")[2].lower())
