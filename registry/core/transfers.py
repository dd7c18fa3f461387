"""File transfers: parallel, counted, stopped together, and resumable."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from qpack.core.errors import RegistryError
from qpack.core.problems import DISK_FULL, FILE_SYSTEM
from qpack.core.records import FileRecord
from registry.core import modelpack
from registry.core.bundle import Progress
from registry.core.codes import DAMAGED_CONTENT, REGISTRY_BUSY, TOO_LARGE
from registry.core.files import CHUNK_BYTES, Flushing, check_free, confined, copy_hashed, disk_errors, holding, settle

AT_ONCE = 4

T = TypeVar("T")

Fetch = Callable[[FileRecord, int], AbstractContextManager[Iterator[bytes]]]
"""The content of a file from an offset; raises RegistryError if the connection breaks."""


class Stopped(Exception):
    """Raised in a transfer after another one of the same release failed or the user interrupted."""


@dataclass
class Counter:
    """Transferred bytes of a total. Threads share it; it is also how they are stopped."""

    total: int
    what: str
    progress: Progress
    done: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def moved(self, count: int) -> None:
        """Count bytes; negative if they have to be transferred again. Raises Stopped once `stop` is set."""
        if self.stop.is_set():
            raise Stopped
        with self.lock:
            self.done += count
            self.progress(self.done, self.total, self.what)

    def all(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Run `work` on every item in parallel. The first failure stops the others and is raised."""
        with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            waiting = [pool.submit(work, item) for item in items]
            try:
                for future in as_completed(waiting):
                    future.result()
            except BaseException:
                self.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise


@contextlib.contextmanager
def arriving(dest: Path, digest: str, files: tuple[FileRecord, ...]) -> Iterator[Path]:
    """A folder for a release's files; renamed to `dest` at the end of the block, durably.

    If the block fails, the folder stays beside `dest` under a name made from the release's digest, and the next attempt
    for the same release resumes in it. Raises RegistryError if `dest` exists, the disk is too small, a path leads
    outside, or another process uses the folder.
    """
    with _beside(dest, digest, files) as (draft, there_bytes):
        total = sum(record.size_bytes for record in files)
        free = shutil.disk_usage(draft).free
        if total - there_bytes > free:
            raise RegistryError(
                DISK_FULL,
                f"{total - there_bytes:,} more bytes are needed, and the disk of {dest} has {free:,} free",
                hint="Free some space or choose another folder, then run the command again.",
            )
        yield draft


@contextlib.contextmanager
def appearing(dest: Path, digest: str, files: tuple[FileRecord, ...]) -> Iterator[Path]:
    """The same without resuming: the folder starts empty and is removed if the block fails. The next attempt removes
    remains of a killed process.
    """
    with _beside(dest, digest, files) as (draft, _):
        try:
            for left in draft.iterdir():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield draft
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


@contextlib.contextmanager
def _beside(dest: Path, digest: str, files: tuple[FileRecord, ...]) -> Iterator[tuple[Path, int]]:
    """The draft of `dest`, held by this process, and its bytes; renamed to `dest` at the end of the block."""
    for record in files:
        confined(dest, record.path)
    with disk_errors(dest, sum(record.size_bytes for record in files)):
        if dest.name in ("", "..") or (dest.exists() and dest.samefile(Path.cwd())):
            raise RegistryError(
                FILE_SYSTEM,
                f"{dest} exists: the folder is made in one piece, under a name that is free",
                hint="Choose a folder that doesn't exist, such as ./release.",
            )
        check_free(dest)
        draft = draft_of(dest, digest)
        dest.parent.mkdir(parents=True, exist_ok=True)
        with _owned(draft) as there_bytes:
            yield draft, there_bytes
            check_free(dest)
            draft.chmod(0o777 & ~_umask())
            settle(draft, dest)
            _forget_others(dest)


def draft_of(dest: Path, digest: str) -> Path:
    """The hidden folder beside `dest` that holds an incomplete release."""
    return dest.with_name(f".{_stem(dest)}.{digest.removeprefix('sha256:')[:12]}.part")


def _stem(dest: Path) -> str:
    """A name for drafts of `dest` within the limit of file systems (255 bytes)."""
    name = os.fsencode(dest.name)
    return dest.name if len(name) <= 200 else hashlib.sha256(name).hexdigest()[:32]


@contextlib.contextmanager
def kept_until_done(folder: Path) -> Iterator[Path]:
    """A folder that is removed if the block succeeds, and kept for the next attempt otherwise. Raises RegistryError if
    another process uses it.
    """
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _owned(folder):
            yield folder
            shutil.rmtree(folder)


def left_behind(folder: Path, *, dry_run: bool) -> tuple[tuple[Path, ...], int]:
    """Remove folders that `kept_until_done` kept in `folder` and no process uses; returns paths and bytes."""
    found, size = [], 0
    with disk_errors(folder):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            with holding(path) as held:
                if held:
                    found.append(path)
                    size += sum(one.lstat().st_size for one in path.rglob("*") if not one.is_dir())
                    if not dry_run:
                        shutil.rmtree(path)
    return tuple(found), size


def read_whole(chunks: Iterable[bytes], what: str, digest: str, limit: int) -> bytes:
    """A small file. Raises RegistryError if it has more bytes than `limit`, or isn't what its digest says."""
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > limit:
            raise RegistryError(TOO_LARGE, f"{what} is larger than {limit:,} bytes", hint="Pull the release instead.")
    if modelpack.digest_of(bytes(data)) != digest:
        raise RegistryError(
            DAMAGED_CONTENT, f"{what} arrived damaged: it is not {digest}", hint="Publish the same release again."
        )
    return bytes(data)


def receive(draft: Path, files: tuple[FileRecord, ...], fetch: Fetch, counter: Counter) -> None:
    """Download every file into `draft` and check its digest. Files that are there aren't downloaded again.

    Duplicates are downloaded once. Raises RegistryError for a file that doesn't match its digest.
    """
    by_content: dict[str, list[FileRecord]] = {}
    for record in files:
        confined(draft, record.path)
        by_content.setdefault(record.sha256, []).append(record)

    def one(same: list[FileRecord]) -> None:
        first, *others = same
        _receive_one(draft / first.path, first, fetch, counter)
        for other in others:
            target = draft / other.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            copy_hashed(draft / first.path, target)
            counter.moved(other.size_bytes)

    counter.all(one, by_content.values())


def _receive_one(target: Path, record: FileRecord, fetch: Fetch, counter: Counter) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("a+b", buffering=CHUNK_BYTES // 4) as file:
        digest, offset = hashlib.sha256(), 0
        if file.tell() > record.size_bytes:
            file.truncate(0)
        file.seek(0)
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            offset += len(chunk)
            counter.moved(len(chunk))
        started, flushing = offset, Flushing(file.fileno(), offset)
        if offset < record.size_bytes:
            with fetch(record, offset) as chunks:
                for chunk in chunks:
                    offset += len(chunk)
                    if offset > record.size_bytes:
                        break
                    digest.update(chunk)
                    file.write(chunk)
                    flushing.wrote(len(chunk))
                    counter.moved(len(chunk))
        file.flush()
        os.fsync(file.fileno())
        if offset == record.size_bytes and digest.hexdigest() == record.sha256:
            return None
        file.truncate(0)
    counter.moved(-min(offset, record.size_bytes))
    if started:
        # The part from an earlier attempt or the new one was damaged: once more from the start.
        return _receive_one(target, record, fetch, counter)
    raise RegistryError(
        DAMAGED_CONTENT,
        f"{record.path} arrived damaged: {'it is longer than' if offset > record.size_bytes else 'its digest is not'}"
        f" sha256:{record.sha256} ({record.size_bytes:,} bytes)",
        hint="Run the command again. If that fails, the registry's copy is damaged: publish the release again.",
    )


@contextlib.contextmanager
def _owned(draft: Path) -> Iterator[int]:
    """Create or take over `draft` for this process. Yields the bytes in it."""
    with contextlib.suppress(FileExistsError):
        draft.mkdir(mode=0o700)
    if draft.lstat().st_uid != os.geteuid():
        raise RegistryError(FILE_SYSTEM, f"{draft} belongs to another user", hint="Choose another folder.")
    with holding(draft) as held:
        if not held:
            raise RegistryError(
                REGISTRY_BUSY,
                f"another process is writing {draft}",
                hint="Wait until it has finished, or choose another folder.",
            )
        yield sum(path.lstat().st_size for path in draft.rglob("*") if path.is_file())


def _umask() -> int:
    """The process's umask, which can be read only by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _forget_others(dest: Path) -> None:
    """Remove drafts of other releases for the same place that no process uses."""
    pattern = re.compile(rf"\.{re.escape(_stem(dest))}\.[0-9a-f]{{12}}\.part", re.DOTALL)
    for path in dest.parent.iterdir():
        if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            with contextlib.suppress(RegistryError, OSError), _owned(path):
                shutil.rmtree(path)
