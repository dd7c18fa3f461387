"""Whether a finished result's files are still what they were: by stat(2), and by content where that differs.

A seal is the SHA-256, size, times and inode of every file of a result, taken when it was finished; a link
counts as the file that it points at. The inode's time of change can't be set back, so an edit that keeps size and
modification time is seen too. A file that was changed less than a clock tick before it was sealed could be changed
again unseen, so its times are left out, and it is read again the next time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from qpack.core.hashing import in_threads, settled, sha256_once

FILE = "seal.json"

GLANCE = 512 * 2**20
"""A plan reads no file that is larger than this, just to see whether it is what it was."""


@dataclass(frozen=True)
class Seal:
    """One file: its content, and its state when that was read. `changed_ns` of 0 is no state: the file was too new."""

    path: str
    sha256: str
    size: int
    modified_ns: int
    changed_ns: int
    inode: int

    def fits(self, state: os.stat_result) -> bool:
        """Whether the file was not touched since."""
        return self.changed_ns != 0 and self == self.of(self.path, self.sha256, state)

    @staticmethod
    def of(path: str, digest: str, state: os.stat_result, *, sure: bool = True) -> Seal:
        """The seal of a file in this state; `sure`: the state would show a change."""
        changed = state.st_ctime_ns if sure else 0
        return Seal(path, digest, state.st_size, state.st_mtime_ns, changed, state.st_ino)


def seal(folder: Path) -> None:
    """Write the seal of everything in `folder`. Raises OSError."""
    _write(folder, in_threads(lambda path: _sealed(folder, path), _files(folder)))


def broken(folder: Path, largest: int | None = None) -> tuple[str, ...]:
    """The files that aren't what was sealed: changed, missing, or new. A folder without a seal is broken as a whole.

    A file whose state differs is read, unless it has more than `largest` bytes: then it counts as the same. Where the
    content is the same after all the seal is renewed, if it can be written.
    """
    try:
        sealed = _read(folder)
    except (OSError, ValueError, TypeError, RecursionError):
        return (FILE,)
    there = set(_files(folder))
    wrong = sorted(there ^ sealed.keys())
    renewed: dict[str, Seal] = {}

    def look(path: str) -> str | None:
        known = sealed[path]
        try:
            state = (folder / path).stat()
            if known.fits(state) or (known.size == state.st_size and largest is not None and state.st_size > largest):
                return None
            if known.size != state.st_size:
                return path
            again = _sealed(folder, path)
        except OSError:
            return path
        renewed[path] = again
        return None if again.sha256 == known.sha256 else path

    wrong += [path for path in in_threads(look, sorted(there & sealed.keys())) if path]
    if renewed and not wrong:
        _renew(folder, sealed | renewed)
    return tuple(wrong)


def linked(folder: Path) -> None:
    """Renew the seal after another name was given to files of `folder`, which moves their time of change and nothing
    else. The caller has just seen that the seal holds.
    """
    try:
        sealed = _read(folder)
        for path, known in sealed.items():
            state, now = (folder / path).stat(), time.time_ns()
            if Seal.of(path, known.sha256, state).changed_ns != known.changed_ns and (
                (state.st_size, state.st_mtime_ns, state.st_ino) == (known.size, known.modified_ns, known.inode)
            ):
                sealed[path] = Seal.of(path, known.sha256, state, sure=settled(state, now))
    except (OSError, ValueError, TypeError, RecursionError):
        return
    _renew(folder, sealed)


def _files(folder: Path) -> list[str]:
    return sorted(_below(folder))


def _below(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = PurePosixPath((Path(parent) / name).relative_to(folder)).as_posix()
            if path != FILE and not path.startswith(f"{FILE}."):
                yield path


def _sealed(folder: Path, path: str) -> Seal:
    """The content between two looks at the state: the same before and after."""
    file = folder / path
    for _ in range(3):
        before, now = file.stat(), time.time_ns()
        digest = sha256_once(file)
        after = file.stat()
        if Seal.of(path, digest, before) == Seal.of(path, digest, after):
            return Seal.of(path, digest, after, sure=settled(after, now))
    raise OSError(f"{file} is being written to")


def _read(folder: Path) -> dict[str, Seal]:
    rows = json.loads((folder / FILE).read_text())
    if not isinstance(rows, list):
        raise ValueError(f"{folder / FILE} is no list")
    return {row[0]: Seal(*row) for row in rows}


def _write(folder: Path, sealed: tuple[Seal, ...]) -> None:
    rows = [[s.path, s.sha256, s.size, s.modified_ns, s.changed_ns, s.inode] for s in sealed]
    part = folder / f"{FILE}.{os.getpid()}.part"
    try:
        part.write_text(json.dumps(rows))
        part.replace(folder / FILE)
    finally:
        part.unlink(missing_ok=True)


def _renew(folder: Path, sealed: dict[str, Seal]) -> None:
    try:
        _write(folder, tuple(sealed[path] for path in sorted(sealed)))
    except OSError:
        return  # It is read again the next time.
