"""Import of a release from a remote registry into the local one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qpack.core.errors import RegistryError
from qpack.core.records import Published
from registry.core.codes import CHANGED_MEANWHILE, INVALID_NAME, VERSION_EXISTS
from registry.core.modelpack import TITLE, Contents
from registry.core.protocol import Named, PushRequest, Registry, Remote, is_name
from registry.core.transfers import kept_until_done
from registry.release import release_files, release_folder
from registry.serving.plain_text import shown


def import_release(remote: Remote, ref: Named, local: Registry, drafts: Path, *, actor: str, note: str) -> Published:
    """Import the release `ref` of `remote` into `local`, under its version and the last part of its name.

    After an interruption the downloaded part stays in `drafts`, and the next attempt resumes. Raises RegistryError
    before downloading if the version exists with other content, and, with nothing imported, for a release with
    unexpected files.
    """
    resolved = remote.resolve(ref)
    name = local_name(resolved.name)
    for there in local.list():
        if (there.name, there.version) == (name, resolved.version) and there.digest != resolved.digest:
            raise RegistryError(
                VERSION_EXISTS,
                f"{name}:{resolved.version} exists in the local registry with other content ({there.digest});"
                " versions never change",
                hint="Pull it to a folder, or set QPACK_REGISTRY to another registry.",
            )
    with kept_until_done(drafts / resolved.digest.removeprefix("sha256:")[:32]) as folder:
        bundle = remote.fetch_bundle(resolved, folder)
        if bundle.digest != resolved.digest:
            raise RegistryError(
                CHANGED_MEANWHILE, f"{resolved.exact} has moved meanwhile", hint="Run the command again."
            )
        expected_files(bundle.contents, str(ref), _read(folder / "release.json"))
        return local.put(bundle, PushRequest(name, resolved.version, None, actor=actor, note=note, consume=True))


def expected_files(contents: Contents, ref: str, manifest: bytes | None) -> None:
    """Raise RegistryError for a release with unexpected files, or with files that its release manifest doesn't list.

    If `manifest` (`release.json`) can't be read, only the names are checked.
    """
    try:
        listed = None if manifest is None else {f.path for f in release_folder.read(manifest, ref).quantized.files}
    except RegistryError:
        listed = None
    release_files.check(ref, (record.path for record in contents.files), listed)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def local_name(name: str) -> str:
    """The local name of a release from elsewhere: the last part of its address, which the user has typed. The name in
    the release is its author's choice, and could be that of another local release. Raises RegistryError if it isn't a
    valid name here, as some on the Hub.
    """
    last = name.rpartition("/")[2].lower()
    if not is_name(last):
        hint = "Pull it to a folder, or publish it under another name."
        raise RegistryError(INVALID_NAME, f"{last!r}, from {name}, is not a valid name of a release", hint=hint)
    return last


def called_otherwise(annotations: Mapping[str, str], reference: str) -> str | None:
    """A note if the name in the release differs from its local name, else None."""
    title, name = annotations.get(TITLE, ""), reference.rpartition(":")[0]
    if title in ("", name):
        return None
    return f"The release is named {shown(title)} by its author; here it is {reference}, after its address."
