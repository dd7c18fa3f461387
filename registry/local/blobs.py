"""Content-addressed blobs, `blobs/sha256/<hex>`: complete, read-only, named by their SHA-256."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qpack.core.durable import sync
from qpack.core.errors import RegistryError
from qpack.core.hashing import in_threads, sha256
from qpack.core.problems import Code
from qpack.core.records import FileRecord
from registry.core.codes import DAMAGED_CONTENT, MISSING_CONTENT
from registry.core.files import bounded, confined, copy_hashed, holding
from registry.core.modelpack import DIGEST, digest_of

_INVALID_DIGEST = Code("invalid-digest", "A text is no digest.")

LARGEST = 256 * 2**20
"""The most bytes that are read into memory at once. A release manifest with every sample is far smaller."""


@dataclass(frozen=True)
class Staged:
    """An incoming file: `part` holds its content; None if the blob exists."""

    record: FileRecord
    part: Path | None


@dataclass(frozen=True)
class Blobs:
    """The blobs of an OCI image layout at `root`. Incomplete content is in `root/ingest`."""

    root: Path

    @property
    def folder(self) -> Path:
        """The folder of the blobs."""
        return self.root / "blobs" / "sha256"

    @property
    def ingest(self) -> Path:
        """The folder of incomplete content. Files of no running process are garbage."""
        return self.root / "ingest"

    @property
    def doubts(self) -> Path:
        """The folder with an empty file for each blob that was found damaged and not yet replaced."""
        return self.root / "doubts"

    def path(self, digest: str) -> Path:
        """The path of the blob `sha256:...`, which may not exist. RegistryError for anything but a digest."""
        if not DIGEST.fullmatch(digest):
            raise RegistryError(
                _INVALID_DIGEST, f"{digest!r} is not a digest", hint="Pull it with the program that wrote it."
            )
        return self.folder / digest.removeprefix("sha256:")

    def read(self, digest: str, what: str, largest: int = LARGEST) -> bytes:
        """A small blob's content. Raises RegistryError if it is missing, too large, or doesn't match its digest."""
        try:
            data = bounded(self.path(digest), largest, what)
        except FileNotFoundError as error:
            raise _missing(what, digest) from error
        if digest_of(data) != digest:
            raise self._damaged(what, digest)
        return data

    def verified(self, digest: str, what: str) -> Path:
        """The blob's path, after its content was checked. Raises RegistryError as `read` does."""
        path = self.path(digest)
        try:
            found = sha256(path)
        except FileNotFoundError as error:
            raise _missing(what, digest) from error
        if f"sha256:{found}" != digest:
            raise self._damaged(what, digest)
        return path

    def copy_out(self, record: FileRecord, folder: Path) -> None:
        """Copy a blob to `folder`/`record.path` and check its digest."""
        target = confined(folder, record.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = f"sha256:{record.sha256}"
        source = self.path(digest)
        if not source.is_file():
            raise _missing(record.path, digest)
        if copy_hashed(source, target) != record.sha256:
            raise self._damaged(record.path, digest)

    def mark_suspect(self, digest: str) -> None:
        """Record that a blob is damaged, so that the next publication of its content replaces it. Does nothing on a
        read-only disk.
        """
        with contextlib.suppress(OSError):
            self.doubts.mkdir(exist_ok=True)
            (self.doubts / self.path(digest).name).touch()

    def clear_suspect(self, record: FileRecord) -> None:
        """Remove the record of damage: the blob was read and matches its digest."""
        with contextlib.suppress(OSError):
            (self.doubts / record.sha256).unlink(missing_ok=True)

    def is_intact(self, record: FileRecord) -> bool:
        """Whether a file's blob exists, has its size, and isn't recorded as damaged. Doesn't read it."""
        path = self.path(f"sha256:{record.sha256}")
        try:
            return path.stat().st_size == record.size_bytes and not (self.doubts / path.name).exists()
        except FileNotFoundError:
            return False

    def _damaged(self, what: str, digest: str) -> RegistryError:
        self.mark_suspect(digest)
        return RegistryError(
            DAMAGED_CONTENT,
            f"{what} is damaged: the content of {self.path(digest)} is not {digest}",
            hint="`qpack build` of its recipe replaces it if the store's copy is intact; so does publishing or pulling"
            " the same release from another copy. Check the disk.",
        )

    @contextlib.contextmanager
    def draft(self) -> Iterator[Path]:
        """A temporary folder for incomplete content. Removes those of killed processes first."""
        self.ingest.mkdir(parents=True, exist_ok=True)
        for left in self.ingest.iterdir():
            with holding(left) as held:
                if held:
                    shutil.rmtree(left, ignore_errors=True)
        while True:
            folder = Path(tempfile.mkdtemp(dir=self.ingest))
            with holding(folder) as held:
                if not held:
                    # Another process took it for a dead one before it was held.
                    continue
                try:
                    yield folder
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
                return

    def stage(self, source: Path, files: tuple[str, ...], draft: Path, *, consume: bool) -> tuple[Staged, ...]:
        """Copy and hash the files of `source` into `draft`, in parallel. Existing blobs aren't copied."""
        return self.stage_files([(path, source / path) for path in files], draft, consume=consume)

    def stage_files(self, files: Sequence[tuple[str, Path]], draft: Path, *, consume: bool) -> tuple[Staged, ...]:
        """`stage` for files from several folders: (path in the release, file)."""
        # Only a file with another link can be a blob. Listing inodes needs no stat of the blobs.
        linked = any(file.stat().st_nlink > 1 for _, file in files)
        there = {entry.inode(): entry.name for entry in os.scandir(self.folder)} if linked else {}

        def one(item: tuple[int, tuple[str, Path]]) -> Staged:
            number, (path, file) = item
            return self._stage_one(file, path, draft / str(number), there.get(file.stat().st_ino), consume=consume)

        return in_threads(one, enumerate(files))

    def _stage_one(self, file: Path, path: str, part: Path, name: str | None, *, consume: bool) -> Staged:
        """Stage one file. `name` is the blob that it may be a hard link of, from an earlier push."""
        if name is not None and (self.folder / name).samefile(file):
            if (self.doubts / name).exists() and sha256(file) != name:
                # The file is the damaged blob itself.
                raise self._damaged(path, f"sha256:{name}")
            return Staged(FileRecord(path=path, size_bytes=file.stat().st_size, sha256=name), None)
        if consume and _linked(file, part):
            sync(part)
            digest = sha256(part)
        else:
            digest = copy_hashed(file, part)
        record = FileRecord(path=path, size_bytes=part.stat().st_size, sha256=digest)
        if self._holds(digest):
            part.unlink()
            return Staged(record, None)
        return Staged(record, part)

    def _holds(self, name: str) -> bool:
        """Whether the blob exists and matches its digest; it is read. A damaged one gets replaced by the new copy."""
        try:
            return sha256(self.folder / name) == name
        except FileNotFoundError:
            return False

    def stage_bytes(self, data: bytes, name: str, draft: Path) -> Staged:
        """Stage bytes (a manifest, a config) in `draft`."""
        part = draft / name
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sha256 = digest_of(data).removeprefix("sha256:")
        return Staged(FileRecord(path=name, size_bytes=len(data), sha256=sha256), part)

    def keep(self, staged: tuple[Staged, ...]) -> None:
        """Rename staged content into place, durably. Needs no disk space."""
        for item in staged:
            # Duplicates replace each other.
            if item.part is not None:
                item.part.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
                item.part.replace(self.path(f"sha256:{item.record.sha256}"))
            self.clear_suspect(item.record)
        sync(self.folder)


def _linked(file: Path, part: Path) -> bool:
    try:
        part.hardlink_to(file)
    except OSError:
        return False
    return True


def _missing(what: str, digest: str) -> RegistryError:
    return RegistryError(
        MISSING_CONTENT,
        f"{what} is missing from the registry ({digest})",
        hint="Publish or pull the same release again from another copy: that restores it.",
    )
