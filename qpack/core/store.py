"""The work store: results by the digest of their inputs. What is in it was finished; what wasn't is not in it.

HOME/store/STAGE/KEY/result.json     and the files that belong to the result
HOME/store/STAGE/KEY/seal.json       what those files were when it was finished (qpack.core.seals)
HOME/store/drafts/STAGE-KEY/         being made; deleted when its maker starts again
HOME/store/scratch/STAGE-KEY/        what a worker that is killed leaves to go on from; deleted once it has finished
HOME/store/locks/STAGE-KEY           flock(2): the kernel frees it when the holder dies
HOME/logs/STAGE-KEY.log              everything the stage's processes printed
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import qpack
from qpack.core import seals
from qpack.core.durable import sync
from qpack.core.errors import EnvironmentFailed
from qpack.core.frozen import Frozen
from qpack.core.jsonfile import JsonObject
from qpack.core.problems import CHANGED_WHILE_READ, DISK_FULL, FILE_SYSTEM, NO_LOCKS

R = TypeVar("R", bound=Frozen)


Inputs: TypeAlias = Mapping[str, Any]
"""All that decides a result, by name, as plain data: what its key is the digest of."""


def key_of(inputs: Inputs) -> str:
    """The SHA-256 of `inputs` as canonical JSON (sorted keys, no blanks): equal inputs, equal key."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Entry(Generic[R]):
    """A finished result, the folder that holds its files, what it cost, and what its key was made of (`inputs`)."""

    result: R
    folder: Path
    key: str
    seconds: float
    reused: bool
    inputs: Inputs = field(default_factory=dict)
    made: Mapping[str, str] = field(default_factory=dict)
    """By which qpack and which Python, and when (UTC)."""

    @property
    def identity(self) -> str:
        """What tells this result from another one under the same key: the digest of its content."""
        digest = getattr(self.result, "digest", None)
        return str(digest) if digest else key_of(self.result.model_dump(mode="json"))


@dataclass(frozen=True)
class Store:
    """Results under `home`."""

    home: Path

    def folder(self, stage: str, key: str) -> Path:
        """Where the result of `stage` for `key` stands once it is finished."""
        return self.home / "store" / stage / key

    def log(self, stage: str, key: str) -> Path:
        """The stage's log. It outlives failures."""
        return self.home / "logs" / f"{stage}-{key[:16]}.log"

    def scratch(self, stage: str, key: str) -> Path:
        """A folder that outlives a worker that is killed, so that the next one can go on; its maker deletes it."""
        return self.home / "store" / "scratch" / f"{stage}-{key}"

    def get(
        self,
        stage: str,
        key: str,
        kind: type[R],
        uses: Sequence[Entry[Any]] = (),
        usable: Callable[[R], bool] = lambda _: True,
    ) -> Entry[R] | None:
        """The finished result, or None. One that can't be read (another version of qpack wrote it) counts as absent.

        So does one of whose files one was changed since, or what its links point at; and one that was made from other
        results than `uses`, under the same keys: a result that was lost and made again needn't be the same; and one
        that isn't `usable` for what it is wanted for now.
        """
        folder = self.folder(stage, key)
        if (envelope := envelope_of(folder)) is None:
            return None
        try:
            result = kind.model_validate(envelope["result"])
        except (ValueError, RecursionError):
            return None
        if _made_from_others(envelope, uses) or not usable(result) or seals.broken(folder):
            return None
        return Entry(
            result, folder, key, envelope["seconds"], reused=True, inputs=envelope["inputs"], made=envelope["made"]
        )

    def holds(self, stage: str, key: str, largest: int | None = None) -> bool:
        """Whether there is a result for `key`, with its files as they were; see `seals.broken` for `largest`."""
        folder = self.folder(stage, key)
        return (folder / "result.json").exists() and not seals.broken(folder, largest)

    def once(
        self,
        stage: str,
        key: str,
        kind: type[R],
        make: Callable[[Path], R],
        *,
        inputs: Inputs,
        report: Callable[[str], None] = lambda _: None,
        uses: Sequence[Entry[Any]] = (),
        usable: Callable[[R], bool] = lambda _: True,
    ) -> Entry[R]:
        """Return the stored result, or make it: exactly one process makes it, the others wait and read it.

        `make` gets an empty folder and returns the result that belongs to the files it left there. The folder appears
        in the store in one rename, or never. `uses` are the results that `make` reads from. A stored result that isn't
        `usable` is made again, once, and the new one is returned as it is.

        Raises EnvironmentFailed when the disk is full, when the store can't be written, or when one of `uses` was
        changed meanwhile.
        """
        if (found := self.get(stage, key, kind, uses, usable)) is not None:
            return found
        waiting = functools.partial(report, f"another qpack is making {stage}; waiting for it")
        with _disk_errors(self.home), self._locked(f"{stage}-{key}", waiting):
            if (found := self.get(stage, key, kind, uses, usable)) is not None:
                return found
            draft = self.home / "store" / "drafts" / f"{stage}-{key}"
            final = self.folder(stage, key)
            if (before := envelope_of(final)) is not None:
                if wrong := seals.broken(final):
                    report(f"what is stored of {stage} was changed since ({_named(final, wrong)}); it is made anew")
                elif _made_from_others(before, uses):
                    report(f"what is stored of {stage} was made from results that are others now; it is made anew")
                else:
                    report(f"what is stored of {stage} can't be used; it is made anew")
            for leftover in (draft, final):
                _clear(leftover)
            draft.mkdir(parents=True)
            try:
                started = time.monotonic()
                result = make(draft)
                seconds = time.monotonic() - started
                for used in uses:
                    _unchanged(used)
                made = _maker()
                envelope = {
                    "result": result.model_dump(mode="json"),
                    "seconds": seconds,
                    "inputs": inputs,
                    "made": made,
                    "uses": {used.key: used.identity for used in uses},
                }
                (draft / "result.json").write_text(json.dumps(envelope, indent=1))
                seals.seal(draft)
                _sync(draft)
                final.parent.mkdir(parents=True, exist_ok=True)
                draft.rename(final)
                sync(final.parent)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
        return Entry(result, final, key, seconds, reused=False, inputs=inputs, made=made)

    def stored(self, stage: str) -> Iterator[tuple[Path, Mapping[str, Any]]]:
        """(folder, envelope) of every result of a stage, whether its files are whole or not."""
        for folder in sorted((self.home / "store" / stage).glob("*")):
            if (envelope := envelope_of(folder)) is not None:
                yield folder, envelope

    def forget(self, stage: str, key: str) -> None:
        """Take a result out of the store: what it holds is damaged."""
        with self._locked(f"{stage}-{key}", lambda: None):
            shutil.rmtree(self.folder(stage, key), ignore_errors=True)

    def sweep(self) -> None:
        """Delete the drafts and the parts of notes whose makers were killed. Those of makers that live are locked."""
        drafts = self.home / "store" / "drafts"
        for draft in drafts.iterdir() if drafts.is_dir() else ():
            with contextlib.suppress(OSError), (self.home / "store" / "locks" / draft.name).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(draft, ignore_errors=True)
        for part in (self.home / "notes").glob("*.part"):
            with contextlib.suppress(OSError), part.open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()

    def remember(self, name: str, value: JsonObject) -> None:
        """Keep a small note that can be lost without harm (a file's digest), as on a full disk."""
        write_note(self.home / "notes" / f"{name}.json", value)

    def recall(self, name: str) -> JsonObject:
        """A note, or an empty one."""
        return read_note(self.home / "notes" / f"{name}.json")

    @contextlib.contextmanager
    def _locked(self, name: str, waiting: Callable[[], None]) -> Iterator[None]:
        with locked(self.home / "store" / "locks" / name, waiting):
            yield


def write_note(path: Path, value: JsonObject) -> bool:
    """Write a small file that can be lost without harm, whole or not at all. False where it can't be written."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w") as file:
            # Held for as long as its maker lives: see `Store.sweep`.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(json.dumps(value))
            file.flush()
            part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        return False
    return True


def read_note(path: Path) -> JsonObject:
    """What `write_note` wrote; an empty object for a file that isn't there or is damaged."""
    try:
        note = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def envelope_of(folder: Path) -> dict[str, Any] | None:
    """What a stored result says of itself: result, seconds, inputs, made. None for one that can't be read, whatever is
    in its place.
    """
    try:
        envelope = json.loads((folder / "result.json").read_bytes())
        seconds = float(envelope["seconds"])
        inputs, made = envelope["inputs"], envelope.get("made", {})
        whole = isinstance(envelope["result"], dict) and isinstance(inputs, dict) and isinstance(made, dict)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if not whole or not 0 <= seconds < math.inf:
        return None
    return {**envelope, "seconds": seconds, "made": {str(name): str(value) for name, value in made.items()}}


def _made_from_others(envelope: Mapping[str, Any], uses: Sequence[Entry[Any]]) -> bool:
    then = envelope.get("uses")
    then = then if isinstance(then, dict) else {}
    return any(then.get(used.key) != used.identity for used in uses)


def _clear(path: Path) -> None:
    """Nothing is there afterwards, whatever was."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an exclusive flock(2) on `path`; call `waiting` once if somebody else has it.

    Raises EnvironmentFailed where the file system has no locks: two makers would overwrite each other's work.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # some of the kernel's own file systems answer so
        raise EnvironmentFailed(
            FILE_SYSTEM, f"{error.filename} can't be made", hint="Set QPACK_HOME to a folder that can be written."
        ) from error
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise EnvironmentFailed(
                    NO_LOCKS,
                    f"the file system of {path.parent} has no locks (flock): {error.strerror}",
                    hint="Set QPACK_HOME to a folder on a local disk, or have the file system mounted with locks.",
                ) from error
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _maker() -> dict[str, str]:
    return {
        "qpack": qpack.__version__,
        "python": platform.python_version(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _unchanged(used: Entry[Any]) -> None:
    if wrong := seals.broken(used.folder):
        raise EnvironmentFailed(
            CHANGED_WHILE_READ,
            f"{_named(used.folder, wrong)} was changed while it was read",
            hint="Run the same command again when nothing writes to it: what was made of it is not kept.",
        )


def _named(folder: Path, wrong: Sequence[str]) -> str:
    """The first of these files, by where it really is, and how many more there are."""
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return f"{(folder / wrong[0]).resolve()}{more}"


@contextlib.contextmanager
def _disk_errors(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise EnvironmentFailed(
                DISK_FULL,
                f"no space left on the disk that holds {home}",
                hint="Free some space, or set QPACK_HOME to a larger disk, and run the same command again.",
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR):
            raise EnvironmentFailed(
                FILE_SYSTEM,
                f"{error.filename or home}: {error.strerror}",
                hint="Set QPACK_HOME to a folder that can be written.",
            ) from error
        raise


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            sync(path)
    sync(folder)
