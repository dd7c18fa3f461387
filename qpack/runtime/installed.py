"""What is installed for an interpreter, by content; and a seal that says in a moment whether a folder is as it was.

The interpreter is asked itself (`workerlib/installed.py`), because only it knows where it looks for modules.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpack.core.errors import EnvironmentFailed
from qpack.runtime import process

_SCRIPT = Path(__file__).parent / "workerlib" / "installed.py"
_SECONDS = 1200.0


@dataclass(frozen=True)
class Installed:
    """`digest` is over the content of every file that the interpreter can import, `packages` are names and versions.

    `changed` are files that aren't as their wheel's RECORD says or are gone, `extra` those that no RECORD names.
    """

    python: str
    packages: Mapping[str, str]
    digest: str
    changed: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


@functools.cache
def survey(python: Path) -> Installed:
    """`inspect`, asked once in a process: a build that begins with an interpreter ends with it."""
    return inspect(python)


def inspect(python: Path, *, full: bool = False) -> Installed:
    """What `python` has installed. `full` reads every file, else only those that may differ from what their RECORD
    says.

    Raises EnvironmentFailed when it isn't a Python that can be asked.
    """
    command = [*process.isolated(python), str(_SCRIPT), *(["--full"] if full else [])]
    try:
        answer: dict[str, Any] = json.loads(process.ask(command, timeout=_SECONDS))
        return Installed(
            python=answer["python"],
            packages=dict(sorted(answer["packages"].items())),
            digest=answer["digest"],
            changed=tuple(answer["changed"]),
            extra=tuple(answer["extra"]),
        )
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError, AttributeError) as error:
        said = getattr(error, "stderr", "") or str(error)
        last = said.strip().splitlines()[-1:] or ["it printed no answer"]
        raise EnvironmentFailed(
            f"{python}: can't be asked what it has installed: {last[0]}", hint="It has to be Python 3.9 or newer."
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
