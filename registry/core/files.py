"""Files that are either whole or not there: copies that are hashed on the way, atomic writes, locks, errors."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar

from qpack.core.errors import RegistryError
from qpack.core.hashing import open_regular, sha256

CHUNK_BYTES = 4 * 1024 * 1024
_BUFFER_BYTES = 1024 * 1024
_FLUSH_BYTES = 8 * 1024 * 1024
# From linux/fs.h: _IOW(0x94, 9, int). Makes a file that shares its blocks with another until one is written to.
_FICLONE = 0x40049409
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

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
    with open_regular(source) as reader, target.open("xb", buffering=0) as writer:
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


def link_or_copy(source: Path, target: Path) -> None:
    """Put the content of `source` at `target`: a clone, else a hard link, else a copy."""
    with open_regular(source) as reader, target.open("xb") as writer:
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
    """Replace `path` by `data` at the end of the block, in one rename, durably. The caller holds the lock on `path`.

    The data is on the disk before the block begins, so that a full disk is noticed before anything is done. When that
    or the block fails, the old content stays, and nothing else. What a writer that was killed leaves, `.NAME.part`, is
    overwritten by the next, and removed by `remove_parts`.
    """
    part = path.with_name(f".{path.name}.part")
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


def parts_of(folder: Path) -> list[Path]:
    """What writers that were killed left in `folder`, for whoever holds the lock on its files."""
    return sorted(folder.glob(".*.part"))


def remove_parts(folder: Path) -> None:
    """Remove what writers that were killed left in `folder`. The caller holds the lock on its files."""
    for part in parts_of(folder):
        part.unlink(missing_ok=True)


def bounded(path: Path, largest: int, what: str = "") -> bytes:
    """A file's content. Raises RegistryError, having read no more, when it is larger than `largest` bytes."""
    pieces, count = [], 0
    with open_regular(path) as file:
        # By pieces: `read(n)` takes n bytes of memory before it reads the first.
        while count <= largest and (piece := file.read(min(_BUFFER_BYTES, largest + 1 - count))):
            pieces.append(piece)
            count += len(piece)
    if count > largest:
        raise RegistryError(f"{what or path} is larger than {largest:,} bytes", hint="It is nothing that qpack wrote.")
    return b"".join(pieces)


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


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[bool]:
    """Hold a flock(2) on a folder for the block, if that is possible at once; yields whether it is.

    It isn't when another process holds it, or when there is no such folder any more. Whoever removes a folder that
    others may hold does so while holding it, so that nobody holds one that is gone.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        descriptor = os.open(folder, flags)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        yield False
        return
    try:
        yield _hold(descriptor, folder)
    finally:
        os.close(descriptor)


def _hold(descriptor: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), folder.lstat())
    except (BlockingIOError, FileNotFoundError):
        return False


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
        raise RegistryError(f"{dest} already exists", hint="Name a folder that is empty or doesn't exist.")


def settle(draft: Path, dest: Path) -> None:
    """Make the folder `draft`, whose files are on the disk, `dest`: in one rename, durably."""
    for path in (draft, *(path for path in draft.rglob("*") if path.is_dir())):
        sync(path)
    draft.rename(dest)
    sync(dest.parent)


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
        if error.errno in _NO_LOCKS:
            raise RegistryError(
                f"{where}: the file system has no locks ({error.strerror})",
                hint="Use a folder on a disk of this machine: without locks two writers would undo each other's work.",
            ) from error
        raise RegistryError(
            f"{where}: {error.strerror or error}",
            hint="Check the folder and its disk, then run the same command again.",
        ) from error
