"""Files that are complete or absent: hashed copies, atomic writes, locks, and errors of the disk."""

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

from qpack.core.durable import sync
from qpack.core.errors import RegistryError
from qpack.core.hashing import open_regular, sha256
from qpack.core.problems import ALREADY_EXISTS, DISK_FULL, FILE_SYSTEM, NO_LOCKS, Code
from registry.core.codes import REGISTRY_BUSY, TOO_LARGE

_UNSAFE_PATH = Code("unsafe-path", "A path leads out of a release.")

CHUNK_BYTES = 4 * 1024 * 1024
_BUFFER_BYTES = 1024 * 1024
_FLUSH_BYTES = 8 * 1024 * 1024
# From linux/fs.h: _IOW(0x94, 9, int). Clones a file: both share their blocks until one is written to.
_FICLONE = 0x40049409
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

T = TypeVar("T")
U = TypeVar("U")


class Flushing:
    """Starts writeback of a file in pieces, so that the final fsync is short.

    Without it the kernel starts late, and then blocks every writer.
    """

    def __init__(self, descriptor: int, start: int = 0) -> None:
        self._descriptor, self._started, self._written = descriptor, start, start

    def wrote(self, count: int) -> None:
        """Count bytes that were appended."""
        self._written += count
        if self._written - self._started >= _FLUSH_BYTES:
            # Linux starts writeback of dirty pages on DONTNEED (mm/fadvise.c), and keeps them.
            os.posix_fadvise(self._descriptor, self._started, self._written - self._started, os.POSIX_FADV_DONTNEED)
            self._started = self._written


def copy_hashed(source: Path, target: Path) -> str:
    """Copy `source` to the new file `target`, durably, and return the SHA-256 (hex) of the copy.

    Clones the file where the file system can (btrfs, XFS). Elsewhere each byte is read once, into one reused buffer:
    allocating a buffer per piece costs more than hashing it.
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
            # Hash the clone: the source may change meanwhile.
            hexdigest = sha256(target)
        os.fsync(writer.fileno())
    return hexdigest


def link_or_copy(source: Path, target: Path) -> None:
    """Create `target` with the content of `source`: a clone, else a hard link, else a copy."""
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


@contextlib.contextmanager
def replacing(path: Path, data: bytes) -> Iterator[None]:
    """Replace `path` by `data` at the end of the block, in one rename, durably. The caller holds the lock on `path`.

    The data is written before the block runs, so that a full disk fails first. If writing or the block fails, the old
    content stays. A killed writer leaves `.NAME.part`, which the next writer overwrites and `remove_parts` removes.
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
    """Temporary files of killed writers in `folder`. The caller holds the lock on its files."""
    return sorted(folder.glob(".*.part"))


def remove_parts(folder: Path) -> None:
    """Remove temporary files of killed writers from `folder`. The caller holds the lock on its files."""
    for part in parts_of(folder):
        part.unlink(missing_ok=True)


def bounded(path: Path, largest: int, what: str = "") -> bytes:
    """A file's content. Raises RegistryError if it is larger than `largest` bytes, and reads no further then."""
    pieces, count = [], 0
    with open_regular(path) as file:
        # In pieces: `read(n)` allocates n bytes first.
        while count <= largest and (piece := file.read(min(_BUFFER_BYTES, largest + 1 - count))):
            pieces.append(piece)
            count += len(piece)
    if count > largest:
        raise RegistryError(
            TOO_LARGE, f"{what or path} is larger than {largest:,} bytes", hint="qpack did not write this file."
        )
    return b"".join(pieces)


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, wait_seconds: float | None = None) -> Iterator[None]:
    """Hold a flock(2) on `path`, exclusive or shared. The kernel releases it when the holder dies.

    Raises RegistryError if it is still held after `wait_seconds` (None waits forever).
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
                    REGISTRY_BUSY,
                    f"another process used the registry {path.parent} for {seconds:.0f} seconds",
                    hint="Wait until running publications have finished, then run the command again.",
                ) from error
            time.sleep(0.05)


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[bool]:
    """Try to hold a flock(2) on a folder for the block, without waiting; yields whether it is held.

    It is not if another process holds it or the folder is gone. Such folders are removed only by their holder, so that
    nobody holds a removed one.
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
    """`folder`/`path`. Raises RegistryError if `path` isn't a plain relative POSIX path that stays inside.

    Paths come from manifests, which are untrusted.
    """
    pure = PurePosixPath(path)
    plain = path == str(pure) and path.isprintable() and "\\" not in path
    if not plain or pure.is_absolute() or path == "." or ".." in pure.parts:
        raise RegistryError(
            _UNSAFE_PATH, f"{path!r} is not a path inside a release", hint="Use relative paths with '/', without '..'."
        )
    return folder / pure


def check_free(dest: Path) -> None:
    """Raise RegistryError unless `dest` is absent or an empty folder."""
    if (dest.is_dir() and any(dest.iterdir())) or (dest.exists() and not dest.is_dir()) or dest.is_symlink():
        raise RegistryError(
            ALREADY_EXISTS, f"{dest} already exists", hint="Choose a folder that is empty or doesn't exist."
        )


def settle(draft: Path, dest: Path) -> None:
    """Rename the folder `draft` to `dest`, durably. Its files are already synced."""
    for path in (draft, *(path for path in draft.rglob("*") if path.is_dir())):
        sync(path)
    draft.rename(dest)
    sync(dest.parent)


@contextlib.contextmanager
def disk_errors(place: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn OSErrors about files under `place` into RegistryErrors with a hint."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else place
        if error.errno in _FULL:
            needed = f" About {needed_bytes:,} bytes are needed." if needed_bytes else ""
            raise RegistryError(
                DISK_FULL,
                f"no space left on the disk that holds {place} ({error.strerror})",
                hint=f"Free some space or use another folder, then run the command again.{needed} Nothing was changed.",
            ) from error
        if error.errno in _DENIED:
            raise RegistryError(
                FILE_SYSTEM,
                f"{where}: {error.strerror}",
                hint="Grant yourself write permission there or use another folder, then run the command again.",
            ) from error
        if error.errno in _NO_LOCKS:
            raise RegistryError(
                NO_LOCKS,
                f"{where}: the file system has no locks ({error.strerror})",
                hint="Use a folder on a local disk: without locks two writers would overwrite each other's changes.",
            ) from error
        raise RegistryError(
            FILE_SYSTEM,
            f"{where}: {error.strerror or error}",
            hint="Check the folder and its disk, then run the command again.",
        ) from error
