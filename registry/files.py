"""Files that are either whole or not there: copies that are hashed on the way, atomic writes, locks, errors."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar

from qpack.errors import RegistryError
from qpack.files import sha256
from qpack.results import FileRecord

CHUNK_BYTES = 4 * 1024 * 1024
_BUFFER_BYTES = 1024 * 1024
_FLUSH_BYTES = 8 * 1024 * 1024
# From linux/fs.h: _IOW(0x94, 9, int). Makes a file that shares its blocks with another until one is written to.
_FICLONE = 0x40049409
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)

T = TypeVar("T")
U = TypeVar("U")


class Flushing:
    """Starts to write to the disk what was written to a file, a piece at a time, so that fsync at the end waits little.

    Without it the kernel begins late, and then makes every writer wait.
    """

    def __init__(self, descriptor: int, start: int = 0) -> None:
        self._descriptor, self._started, self._written = descriptor, start, start

    def wrote(self, count: int) -> None:
        """Count bytes that were written behind those before."""
        self._written += count
        if self._written - self._started >= _FLUSH_BYTES:
            # Linux starts to write dirty pages that are said not to be needed (mm/fadvise.c); they aren't dropped.
            os.posix_fadvise(self._descriptor, self._started, self._written - self._started, os.POSIX_FADV_DONTNEED)
            self._started = self._written


def copy_hashed(source: Path, target: Path) -> str:
    """Copy `source` to the new file `target`, durably, and return the SHA-256 (hex) of what was written.

    Where the filesystem can (btrfs, XFS), the copy shares the source's blocks until either is changed. Elsewhere a
    byte is read once, and one buffer is used over and over: a new one for each piece costs more than hashing it.
    """
    with source.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            digest, buffer, flushing = hashlib.sha256(), memoryview(bytearray(_BUFFER_BYTES)), Flushing(writer.fileno())
            while count := reader.readinto(buffer):
                piece = buffer[:count]
                digest.update(piece)
                written = 0
                while written < count:
                    written += writer.write(piece[written:])
                flushing.wrote(count)
            hexdigest = digest.hexdigest()
        else:
            # What the clone holds, whatever becomes of the source meanwhile.
            hexdigest = sha256(target)
        os.fsync(writer.fileno())
    return hexdigest


def same_content(one: Path, other: Path) -> str | None:
    """The SHA-256 (hex) of two files that hold the same bytes, else None. Each is read once, up to a difference."""
    digest, left, right = hashlib.sha256(), bytearray(_BUFFER_BYTES), bytearray(_BUFFER_BYTES)
    with one.open("rb", buffering=0) as first, other.open("rb", buffering=0) as second:
        while count := _fill(first, left):
            # Behind `count` both hold what was compared before.
            if _fill(second, right) != count or left != right:
                return None
            digest.update(memoryview(left)[:count])
        return None if second.read(1) else digest.hexdigest()


def _fill(file: io.FileIO, buffer: bytearray) -> int:
    """Read until `buffer` is full or the file ends, and return how many bytes came."""
    count, view = 0, memoryview(buffer)
    while count < len(buffer) and (more := file.readinto(view[count:])):
        count += more
    return count


def link_or_copy(source: Path, target: Path) -> None:
    """Put the content of `source` at `target`: a clone, else a hard link, else a copy."""
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
            return
        except OSError:
            pass
    target.unlink()
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def sync(path: Path) -> None:
    """Make a file or a folder durable (fsync): after this, a power cut doesn't lose it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path, data: bytes) -> Iterator[None]:
    """Replace `path` by `data` at the end of the block, in one rename, durably.

    The data is on the disk before the block begins, so that a full disk is noticed before anything is done. When that
    or the block fails, the old content stays, and nothing else.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, wait_seconds: float | None = None) -> Iterator[None]:
    """Hold a flock(2) on `path`, exclusive or shared; the kernel frees it when the holder dies.

    Raises RegistryError when it isn't free after `wait_seconds` (None waits for as long as it takes).
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with path.open("a") as file:
        if wait_seconds is None:
            fcntl.flock(file, kind)
        else:
            _wait(file.fileno(), kind, wait_seconds, path)
        yield


def _wait(descriptor: int, kind: int, seconds: float, path: Path) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise RegistryError(
                    f"the registry {path.parent} was in use by another process for {seconds:.0f} seconds",
                    hint="Wait until running publications have finished, then run the same command again.",
                ) from error
            time.sleep(0.05)


def confined(folder: Path, path: str) -> Path:
    """`folder`/`path`, or RegistryError when `path` isn't a plain relative POSIX path that stays inside.

    Paths come from manifests that somebody else may have written.
    """
    pure = PurePosixPath(path)
    plain = path == str(pure) and path.isprintable() and "\\" not in path
    if not plain or pure.is_absolute() or path == "." or ".." in pure.parts:
        raise RegistryError(
            f"{path!r} is not a path inside a release", hint="Use relative paths with '/', without '..'."
        )
    return folder / pure


def check_free(dest: Path) -> None:
    """Raise RegistryError unless `dest` is absent or an empty folder."""
    if (dest.is_dir() and any(dest.iterdir())) or (dest.exists() and not dest.is_dir()) or dest.is_symlink():
        raise RegistryError(f"{dest} is in the way", hint="Name a folder that is empty or doesn't exist.")


def settle(draft: Path, dest: Path) -> None:
    """Make the folder `draft`, whose files are on the disk, `dest`: in one rename, durably."""
    for path in (draft, *(path for path in draft.rglob("*") if path.is_dir())):
        sync(path)
    draft.rename(dest)
    sync(dest.parent)


@contextlib.contextmanager
def appearing(dest: Path, files: tuple[FileRecord, ...]) -> Iterator[Path]:
    """A folder to write the files to; it becomes `dest` at the end of the block, or is gone when the block fails.

    Raises RegistryError when `dest` is in the way, or a path leads out of it.
    """
    for record in files:
        confined(dest, record.path)
    check_free(dest)
    with disk_errors(dest, sum(record.size_bytes for record in files)):
        dest.parent.mkdir(parents=True, exist_ok=True)
        draft = dest.with_name(f".{dest.name}.{uuid.uuid4().hex}.part")
        draft.mkdir()
        try:
            yield draft
            settle(draft, dest)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


@contextlib.contextmanager
def disk_errors(place: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn what the operating system says about files under `place` into a RegistryError with what to do."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else place
        if error.errno in _FULL:
            needed = f" About {needed_bytes:,} bytes are needed." if needed_bytes else ""
            raise RegistryError(
                f"no space left on the disk that holds {place} ({error.strerror})",
                hint=f"Free some space or use another folder, then run the same command again.{needed}"
                " Nothing was changed.",
            ) from error
        if error.errno in _DENIED:
            raise RegistryError(
                f"{where}: {error.strerror}",
                hint="Give yourself the right to write there, or use another folder, then run the same command again.",
            ) from error
        raise RegistryError(
            f"{where}: {error.strerror or error}",
            hint="Check the folder and its disk, then run the same command again.",
        ) from error
