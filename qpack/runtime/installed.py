"""What is installed for an interpreter, by content; and a seal that says in a moment whether a folder is as it was.

The interpreter is asked itself (`workerlib/installed.py`), because only it knows where it looks for modules.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qpack.core.errors import EnvironmentFailed
from qpack.core.problems import Code
from qpack.runtime import process
from qpack.runtime.workerlib import installed as inside
from qpack.runtime.workerlib import qpack_protocol

NO_INTERPRETER = Code("no-interpreter", "An interpreter can't be started.")

_SCRIPT = Path(__file__).parent / "workerlib" / "installed.py"
_SECONDS = 1200.0


@dataclass(frozen=True)
class Installed:
    """`digest` is over the content of every file that the interpreter can import, `packages` are names and versions.

    `changed` are files that aren't as their wheel's RECORD says or are gone, `extra` those that no RECORD names, and
    `roots` are the folders that it looks for modules in.
    """

    python: str
    packages: dict[str, str]
    digest: str
    changed: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()


@functools.cache
def survey(python: Path, notes: Path | None = None) -> Installed:
    """`inspect`, asked once in a process: a build that begins with an interpreter ends with it.

    In the folder `notes` the answer is kept, and is used again as long as neither the interpreter nor a file that it
    can import has changed, by sizes and times. Then no process is started.
    """
    if notes is None:
        return inspect(python)
    note = notes / f"interpreter-{hashlib.sha256(str(python).encode()).hexdigest()[:32]}.json"
    if (kept := _kept(note, python)) is not None:
        return kept
    begun = time.time_ns()
    found = inspect(python)
    now, newest = state(python, found.roots)
    # A file that was written meanwhile may be another one than was read: then nothing is kept.
    if newest < begun:
        with contextlib.suppress(OSError):
            notes.mkdir(parents=True, exist_ok=True)
            part = note.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps({"state": now, "installed": dataclasses.asdict(found)}))
            part.replace(note)
    return found


def forget() -> None:
    """Ask again in this process, as the next one would."""
    survey.cache_clear()
    _root_state.cache_clear()


def _kept(note: Path, python: Path) -> Installed | None:
    try:
        kept = json.loads(note.read_bytes())
        found = _read(kept["installed"])
        return found if kept["state"] == state(python, found.roots)[0] else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None  # There is none, or another qpack wrote it: the interpreter is asked again.


def _read(answer: object) -> Installed:
    """Raises ValueError when it isn't what `workerlib/installed.py` prints."""
    found = qpack_protocol.decode(Installed, answer)
    return dataclasses.replace(found, packages=dict(sorted(found.packages.items())))


def state(python: Path, roots: Sequence[str]) -> tuple[str, int]:
    """A digest over path, size and times of the interpreter and of every file that it can import, and the newest of
    these times in ns. No file is read.
    """
    whole, newest = hashlib.sha256(), 0
    for path in (python, python.resolve(), python.parent.parent / "pyvenv.cfg"):
        if path.exists():
            line, changed = _line(str(path), path.stat())
            whole.update(line)
            newest = max(newest, changed)
    for root in roots:
        digest, changed = _root_state(root)
        whole.update(digest)
        newest = max(newest, changed)
    return whole.hexdigest(), newest


@functools.cache
def _root_state(root: str) -> tuple[bytes, int]:
    whole, newest = hashlib.sha256(root.encode(errors="surrogateescape")), 0
    endings = None if root.endswith(("site-packages", "dist-packages")) else inside.READ
    below, linked = [root], set[str]()
    while below:
        with os.scandir(below.pop()) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.is_dir():
                hidden = endings is not None and entry.name.startswith(".")
                # A link may lead back up: each place is looked at once.
                again = entry.is_symlink() and (real := os.path.realpath(entry.path)) in linked
                if entry.is_symlink() and not again:
                    linked.add(real)
                if entry.name != inside.COMPILED and not hidden and not again:
                    below.append(entry.path)
            elif (endings is None or entry.name.endswith(endings)) and entry.is_file():
                line, changed = _line(entry.path, entry.stat())
                whole.update(line)
                newest = max(newest, changed)
    return whole.digest(), newest


def _line(path: str, found: os.stat_result) -> tuple[bytes, int]:
    text = f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}\n"
    return text.encode(errors="surrogateescape"), max(found.st_mtime_ns, found.st_ctime_ns)


def inspect(python: Path, *, full: bool = False) -> Installed:
    """What `python` has installed. `full` reads every file, else only those that may differ from what their RECORD
    says.

    Raises EnvironmentFailed when it isn't a Python that can be asked.
    """
    command = [*process.isolated(python), str(_SCRIPT), *(["--full"] if full else [])]
    try:
        return _read(json.loads(process.ask(command, timeout=_SECONDS)))
    except (OSError, subprocess.SubprocessError, ValueError, RecursionError) as error:
        said = getattr(error, "stderr", "") or str(error)
        last = said.strip().splitlines()[-1:] or ["it printed no answer"]
        raise EnvironmentFailed(
            NO_INTERPRETER,
            f"{python}: can't be asked what it has installed: {last[0]}",
            hint="It has to be Python 3.9 or newer.",
        ) from error


def seal(folder: Path) -> dict[str, str]:
    """{name: digest} of what lies in a virtual environment's site-packages, by the sizes and times of its files.

    No file is read. `__pycache__` isn't looked at: it comes and goes with use.
    """
    return {
        top.name: hashlib.sha256(
            "\n".join(sorted(_lines(top, len(str(site))))).encode(errors="surrogateescape")
        ).hexdigest()
        for site in sorted(folder.glob("lib/python*/site-packages"))
        for top in sorted(os.scandir(site), key=lambda entry: entry.name)
        if top.name != "__pycache__"
    }


def _lines(entry: os.DirEntry[str], site: int) -> Iterator[str]:
    if entry.is_dir(follow_symlinks=False):
        with os.scandir(entry) as below:
            for one in below:
                if one.name != "__pycache__":
                    yield from _lines(one, site)
    else:
        state = entry.stat(follow_symlinks=False)
        yield f"{entry.path[site:]}\0{state.st_size}\0{state.st_mtime_ns}"
