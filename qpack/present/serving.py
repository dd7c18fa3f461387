"""What is said of a release that is run or exported."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from qpack.errors import Problem, RegistryError
from qpack.present.text import emit
from qpack.serve import Served


def exported(served: Served, files: Mapping[str, str], folder: Path | None, *, as_json: bool) -> None:
    """Write the files of an export into `folder`; to stdout when there is one file and no folder."""
    if folder is not None:
        _write(files, folder)
    if as_json:
        emit({"release": served.reference, "profile": served.profile, "files": dict(files)})
    elif folder is not None:
        for name in files:
            print(folder / name)
    elif len(files) == 1:
        sys.stdout.write(next(iter(files.values())))
    else:
        names = ", ".join(files)
        raise RegistryError(f"these are {len(files)} files: {names}", hint="Name a folder for them with --output.")


def linted(checked: Sequence[tuple[Served, Sequence[Problem]]], *, as_json: bool) -> None:
    """What is wrong with each profile."""
    if as_json:
        emit(
            [
                {
                    "release": served.reference,
                    "profile": served.profile,
                    "problems": [dataclasses.asdict(problem) for problem in problems],
                }
                for served, problems in checked
            ]
        )
        return
    for served, problems in checked:
        print(f"{served.reference}, profile {served.profile}: {'fine' if not problems else ''}".rstrip())
        for problem in problems:
            print(f"  {problem}")


def _write(files: Mapping[str, str], folder: Path) -> None:
    try:
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if text.startswith("#!"):
                path.chmod(0o755)
    except OSError as error:
        raise RegistryError(
            f"{error.filename or folder}: {error.strerror}", hint="Name another folder with --output."
        ) from error
