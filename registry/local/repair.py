"""Repair: replaces damaged or lost files of a release in the local registry from a copy. Digests stay the same.

The blobs may be hard links to the files in the store, so both can be damaged at once. Each copy is checked first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qpack.core.errors import RegistryError
from qpack.core.hashing import in_threads, sha256
from qpack.core.records import FileRecord
from registry.core.codes import DAMAGED_CONTENT
from registry.core.files import copy_hashed, disk_errors, locked
from registry.local.blobs import Blobs, Staged
from registry.local.registry import LocalRegistry


class Lost(RegistryError):
    """No available copy matches the digest in the release."""


def is_suspect(local: LocalRegistry, ref: str) -> bool:
    """Whether a file of the release or its config is missing, has another size, or is recorded as damaged. Reads only
    the manifest.
    """
    contents, blobs = local.contents(ref), Blobs(local.root)
    config = blobs.path(contents.config_digest)
    whole = config.exists() and not (blobs.doubts / config.name).exists()
    return not whole or not all(map(blobs.is_intact, contents.files))


def repair_release(local: LocalRegistry, ref: str, folder: Path) -> tuple[str, ...]:
    """Replace damaged or missing files of a release by those in `folder`, and return their paths.

    Reads every file. Raises Lost, and replaces nothing, if a needed file in `folder` is damaged as well.
    """
    blobs, files = Blobs(local.root), local.contents(ref).files
    with disk_errors(local.root), locked(local.root / ".content.lock", shared=True), blobs.draft() as draft:
        parts, lost = _copies(blobs, files, folder, draft)
        if lost:
            raise Lost(
                DAMAGED_CONTENT,
                f"{ref} can't be repaired: {', '.join(lost)} is damaged in the registry {local.root} and in {folder}",
                hint="Publish or pull the same release again from another copy. Check the disk.",
            )
        blobs.keep(parts)
    return tuple(part.record.path for part in parts)


def differing(folder: Path, files: Sequence[FileRecord]) -> tuple[str, ...]:
    """The paths of those `files` that are missing or differ in `folder`. Reads every file."""

    def one(record: FileRecord) -> str | None:
        path = folder / record.path
        return None if path.is_file() and sha256(path) == record.sha256 else record.path

    return tuple(path for path in in_threads(one, files) if path)


def _copies(
    blobs: Blobs, files: Sequence[FileRecord], folder: Path, draft: Path
) -> tuple[tuple[Staged, ...], tuple[str, ...]]:
    """Copies of the `files` whose blobs are damaged, and the paths of those that are damaged in `folder` too."""

    def one(item: tuple[int, FileRecord]) -> Staged | str | None:
        number, record = item
        blob, source = blobs.path(f"sha256:{record.sha256}"), folder / record.path
        if blob.is_file() and sha256(blob) == record.sha256:
            blobs.clear_suspect(record)
            return None
        found = copy_hashed(source, draft / str(number)) if source.is_file() else ""
        return Staged(record, draft / str(number)) if found == record.sha256 else record.path

    looked = in_threads(one, enumerate(files))
    staged = tuple(item for item in looked if isinstance(item, Staged))
    return staged, tuple(item for item in looked if isinstance(item, str))
