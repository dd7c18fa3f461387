"""Content-addressed blobs, `blobs/sha256/<hex>`: what is there is whole, read-only, and named by its SHA-256."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qpack.core.errors import RegistryError
from qpack.core.hashing import in_threads, sha256
from qpack.core.records import FileRecord
from registry.core.files import bounded, confined, copy_hashed, holding, sync
from registry.core.modelpack import DIGEST, digest_of

LARGEST = 256 * 2**20
"""What is read into memory at once, at most: a release manifest with every sample stays far below."""


@dataclass(frozen=True)
class Staged:
    """A file on its way in: `part` holds its content, or is None when the blob is there already."""

    record: FileRecord
    part: Path | None


@dataclass(frozen=True)
class Blobs:
    """The blobs of an OCI image layout at `root`. New content waits in `root/ingest` until it is complete."""

    root: Path

    @property
    def folder(self) -> Path:
        """Where the blobs are."""
        return self.root / "blobs" / "sha256"

    @property
    def ingest(self) -> Path:
        """Where unfinished content is. What is here and belongs to no running process is rubbish."""
        return self.root / "ingest"

    @property
    def doubts(self) -> Path:
        """Where an empty file stands for each blob that somebody found damaged, until it is replaced."""
        return self.root / "doubts"

    def path(self, digest: str) -> Path:
        """Where the blob `sha256:...` is, or would be. RegistryError if it isn't a digest: it could lead out."""
        if not DIGEST.fullmatch(digest):
            raise RegistryError(f"{digest!r} is not a digest", hint="Pull it with the program that wrote it.")
        return self.folder / digest.removeprefix("sha256:")

    def read(self, digest: str, what: str, largest: int = LARGEST) -> bytes:
        """A small blob's content. Raises RegistryError when it is missing, too large, or isn't what its name says."""
        try:
            data = bounded(self.path(digest), largest, what)
        except FileNotFoundError as error:
            raise _missing(what, digest) from error
        if digest_of(data) != digest:
            raise self._damaged(what, digest)
        return data

    def verified(self, digest: str, what: str) -> Path:
        """The blob's path, after its content was read and checked. Raises RegistryError as `read` does."""
        path = self.path(digest)
        try:
            found = sha256(path)
        except FileNotFoundError as error:
            raise _missing(what, digest) from error
        if f"sha256:{found}" != digest:
            raise self._damaged(what, digest)
        return path

    def copy_out(self, record: FileRecord, folder: Path) -> None:
        """Write a blob to `folder`/`record.path`, checked on the way."""
        target = confined(folder, record.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = f"sha256:{record.sha256}"
        source = self.path(digest)
        if not source.is_file():
            raise _missing(record.path, digest)
        if copy_hashed(source, target) != record.sha256:
            raise self._damaged(record.path, digest)

    def mark_suspect(self, digest: str) -> None:
        """Remember that a blob is damaged, so that the next publication of its content replaces it, and doesn't take it
        for granted. Where nothing can be written, nothing is remembered.
        """
        with contextlib.suppress(OSError):
            self.doubts.mkdir(exist_ok=True)
            (self.doubts / self.path(digest).name).touch()

    def clear_suspect(self, record: FileRecord) -> None:
        """Forget a doubt: the blob was read, and holds."""
        with contextlib.suppress(OSError):
            (self.doubts / record.sha256).unlink(missing_ok=True)

    def is_intact(self, record: FileRecord) -> bool:
        """Whether a file's blob is there, has its size, and wasn't found damaged. Its content isn't read."""
        path = self.path(f"sha256:{record.sha256}")
        try:
            return path.stat().st_size == record.size_bytes and not (self.doubts / path.name).exists()
        except FileNotFoundError:
            return False

    def _damaged(self, what: str, digest: str) -> RegistryError:
        self.mark_suspect(digest)
        return RegistryError(
            f"{what} is damaged: the content of {self.path(digest)} is not {digest}",
            hint="`qpack build` of its recipe replaces it, where the work store's copy is whole; so does publishing or"
            " pulling the same release from another copy. Check the disk.",
        )

    @contextlib.contextmanager
    def draft(self) -> Iterator[Path]:
        """A folder for unfinished content, gone afterwards. Those of makers that were killed are removed first."""
        self.ingest.mkdir(parents=True, exist_ok=True)
        for left in self.ingest.iterdir():
            with holding(left) as held:
                if held:
                    shutil.rmtree(left, ignore_errors=True)
        while True:
            folder = Path(tempfile.mkdtemp(dir=self.ingest))
            with holding(folder) as held:
                if not held:
                    # Somebody took it for a dead one, in the moment before it was held.
                    continue
                try:
                    yield folder
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
                return

    def stage(self, source: Path, files: tuple[str, ...], draft: Path, *, consume: bool) -> tuple[Staged, ...]:
        """Bring the files of `source` into `draft`, hashed, several at once. What is there already isn't copied."""
        return self.stage_files([(path, source / path) for path in files], draft, consume=consume)

    def stage_files(self, files: Sequence[tuple[str, Path]], draft: Path, *, consume: bool) -> tuple[Staged, ...]:
        """`stage` for files that lie anywhere: (path in the release, file)."""
        # Only a file with another link can be a blob. Names and numbers alone are listed: no blob is looked at.
        linked = any(file.stat().st_nlink > 1 for _, file in files)
        there = {entry.inode(): entry.name for entry in os.scandir(self.folder)} if linked else {}

        def one(item: tuple[int, tuple[str, Path]]) -> Staged:
            number, (path, file) = item
            return self._stage_one(file, path, draft / str(number), there.get(file.stat().st_ino), consume=consume)

        return in_threads(one, enumerate(files))

    def _stage_one(self, file: Path, path: str, part: Path, name: str | None, *, consume: bool) -> Staged:
        """Bring a file in. `name` is the blob that the file may be: an earlier push linked it."""
        if name is not None and (self.folder / name).samefile(file):
            if (self.doubts / name).exists() and sha256(file) != name:
                # The file is the damaged blob: its content is nothing that anybody made.
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
        """Whether the blob is there with its content, which is read. A damaged one is replaced by the new copy."""
        try:
            return sha256(self.folder / name) == name
        except FileNotFoundError:
            return False

    def stage_bytes(self, data: bytes, name: str, draft: Path) -> Staged:
        """Bring bytes into `draft` (a manifest, a config)."""
        part = draft / name
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sha256 = digest_of(data).removeprefix("sha256:")
        return Staged(FileRecord(path=name, size_bytes=len(data), sha256=sha256), part)

    def keep(self, staged: tuple[Staged, ...]) -> None:
        """Move staged content into its place, durably. Only renames happen here: a full disk doesn't matter."""
        for item in staged:
            # Two files with the same content replace one another.
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
        f"the registry has lost {what} ({digest})",
        hint="Publish the same release again, or pull it, from another copy: that puts it back.",
    )
