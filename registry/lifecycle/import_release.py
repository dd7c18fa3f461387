"""A release on its way from a remote registry into the local one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qpack.core.errors import RegistryError
from qpack.core.records import Published
from registry.core.modelpack import TITLE, Contents
from registry.core.protocol import Named, PushRequest, Registry, Remote, is_name
from registry.core.transfers import kept_until_done
from registry.release import release_files, release_folder
from registry.serving.plain_text import shown


def import_release(remote: Remote, ref: Named, local: Registry, drafts: Path, *, actor: str, note: str) -> Published:
    """Put the release `ref` of `remote` into `local`, under its version and the last part of its name there.

    What has arrived when it breaks off waits in `drafts`, and the next try goes on. Raises RegistryError before
    anything is fetched when the version is there with other content, since versions never change; and, with nothing
    put, for a release with files that none has.
    """
    resolved = remote.resolve(ref)
    name = local_name(resolved.name)
    for there in local.list():
        if (there.name, there.version) == (name, resolved.version) and there.digest != resolved.digest:
            raise RegistryError(
                f"{name}:{resolved.version} is in the local registry with other content ({there.digest}), and versions"
                " never change",
                hint="Name a folder to pull it to, or use another registry: set QPACK_REGISTRY.",
            )
    with kept_until_done(drafts / resolved.digest.removeprefix("sha256:")[:32]) as folder:
        bundle = remote.fetch_bundle(resolved, folder)
        if bundle.digest != resolved.digest:
            raise RegistryError(f"{resolved.exact} has moved meanwhile", hint="Run the same command again.")
        expected_files(bundle.contents, str(ref), _read(folder / "release.json"))
        return local.put(bundle, PushRequest(name, resolved.version, None, actor=actor, note=note, consume=True))


def expected_files(contents: Contents, ref: str, manifest: bytes | None) -> None:
    """Raise RegistryError for a release with files that none has, or that its release manifest doesn't list.

    `manifest` is that of the release; one that can't be read lists nothing, and leaves it at the names.
    """
    try:
        listed = None if manifest is None else {f.path for f in release_folder.read(manifest, ref).quantized.files}
    except RegistryError:
        listed = None
    release_files.check(ref, (record.path for record in contents.files), listed)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def local_name(name: str) -> str:
    """What a release from elsewhere is called here: the last part of its name there, which the user has written. What
    it calls itself is its maker's choice, and could be the name of a release of yours. Raises RegistryError when that
    can't be a name here, as some on the Hub.
    """
    last = name.rpartition("/")[2].lower()
    if not is_name(last):
        hint = "Name a folder to pull it to, or publish it under another name."
        raise RegistryError(f"{last!r}, from {name}, can't be the name of a release here", hint=hint)
    return last


def called_otherwise(annotations: Mapping[str, str], reference: str) -> str | None:
    """A line for a release that calls itself something else than it is called here; None where it doesn't."""
    title, name = annotations.get(TITLE, ""), reference.rpartition(":")[0]
    if title in ("", name):
        return None
    return f"The release calls itself {shown(title)}; here it is {reference}, after its address."
