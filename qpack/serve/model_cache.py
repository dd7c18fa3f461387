"""Models of releases in the work store, as files that a server can load: keyed by what they hold, proved at each use.

    HOME/store/served/KEY/model/      the files; KEY is over their paths and digests, as the release's manifest has them
    HOME/notes/sealed-KEY.json        how each file looked to the system (`_seal`) when its content was last hashed

A file whose seal is the same has not been written to since: the kernel sets the time of change itself. One whose seal
differs is hashed again, and a folder that doesn't match its key is written again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from qpack.core.errors import RegistryError
from qpack.core.frozen import Frozen
from qpack.core.hashing import in_threads, sha256
from qpack.core.problems import CHANGED_WHILE_READ
from qpack.core.records import FileRecord
from qpack.core.store import Store, key_of
from registry.core.codes import DAMAGED_CONTENT
from registry.core.files import confined, disk_errors, link_or_copy

Seal = list[int]
"""Device, inode, size, and the times of the last write and of the last change, in nanoseconds."""

_READ_ONLY = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH


class Materialized(Frozen):
    """A release's model in `model/`: these files and no others."""

    files: tuple[FileRecord, ...]


def key(files: Iterable[FileRecord]) -> str:
    """The key of a model in the store: releases of the same files share it, and others can't have it."""
    return key_of(_inputs(files))


def folder(store: Store, files: Iterable[FileRecord]) -> Path:
    """The model's folder."""
    return store.folder("served", key(files)) / "model"


def materialize(store: Store, files: tuple[FileRecord, ...], blob: Callable[[str], Path]) -> Path:
    """The folder with these files, as paths and digests of a manifest say; `blob` gives the file of `sha256:...`.

    Cloned or linked where the disk can. Each file is hashed when it is put there, and again whenever it may have
    changed since. Raises RegistryError for a blob that doesn't match its digest.
    """
    name, sealed = key(files), dict[str, Seal]()

    def make(out: Path) -> Materialized:
        with disk_errors(out):
            sealed.update(in_threads(lambda record: (record.path, _put(record, blob, out / "model")), files))
        return Materialized(files=files)

    for _ in range(2):
        place = store.once("served", name, Materialized, make, inputs=_inputs(files)).folder / "model"
        known = _known(store, name)
        found = _seals(place, files, {**known, **sealed})
        if found is not None:
            if found != known:
                store.remember(f"sealed-{name}", found)
            return place
        sealed.clear()
        store.forget("served", name)
    raise RegistryError(
        CHANGED_WHILE_READ,
        f"the model can't be kept in {place}: its files change while they are read",
        hint="Another program writes to the store. Set QPACK_HOME to a separate folder and try again.",
    )


def _inputs(files: Iterable[FileRecord]) -> dict[str, dict[str, str]]:
    return {"files": {record.path: record.sha256 for record in files}}


def _put(record: FileRecord, blob: Callable[[str], Path], model: Path) -> Seal:
    source = blob(f"sha256:{record.sha256}")
    try:
        found = source.stat()
    except FileNotFoundError as error:
        raise _damaged(record, source, "is missing") from error
    # A pipe would be waited for, and a device be read for ever.
    if not stat.S_ISREG(found.st_mode) or found.st_size != record.size_bytes:
        raise _damaged(record, source, f"isn't a file of {record.size_bytes:,} bytes")
    target = confined(model, record.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(source, target)
    if stat.S_IMODE(target.lstat().st_mode) != _READ_ONLY:
        target.chmod(_READ_ONLY)
    seal = _hashed(target, record)
    if seal is None:
        raise _damaged(record, source, "doesn't match its digest")
    return seal


def _seals(model: Path, files: tuple[FileRecord, ...], known: dict[str, Seal]) -> dict[str, Seal] | None:
    """The seals of the files if each matches its digest and there are no others, else None."""
    if {record.path for record in files} != set(_present(model)):
        return None
    seals = in_threads(lambda record: _proved(model, record, known), files)
    return (
        {record.path: seal for record, seal in zip(files, seals, strict=True) if seal is not None}
        if None not in seals
        else None
    )


def _proved(model: Path, record: FileRecord, known: dict[str, Seal]) -> Seal | None:
    """The file's seal if it matches its digest, else None. It is hashed only when its seal is a new one."""
    target = confined(model, record.path)
    try:
        seal = _seal(target)
        return seal if seal is not None and seal == known.get(record.path) else _hashed(target, record)
    except OSError:
        return None


def _hashed(path: Path, record: FileRecord) -> Seal | None:
    """The seal that a file had while its content was hashed, None when that isn't the record's."""
    before = _seal(path)
    if before is None or path.stat().st_size != record.size_bytes or sha256(path) != record.sha256:
        return None
    return before if _seal(path) == before else None


def _seal(path: Path) -> Seal | None:
    """None for links and folders: a link's target can change."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        return None
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _present(model: Path) -> Iterator[str]:
    """Every file below `model`."""
    for parent, folders, names in os.walk(model):
        here = Path(parent).relative_to(model)
        links = (name for name in folders if (Path(parent) / name).is_symlink())
        yield from ((here / name).as_posix() for name in (*names, *links))


def _known(store: Store, name: str) -> dict[str, Seal]:
    note = store.recall(f"sealed-{name}")
    return note if isinstance(note, dict) else {}


def _damaged(record: FileRecord, blob: Path, what: str) -> RegistryError:
    return RegistryError(
        DAMAGED_CONTENT,
        f"model/{record.path} is damaged in the registry: {blob} {what}",
        hint="`qpack build` of its recipe replaces it, or a pull of the same release from elsewhere. Check the disk.",
    )
