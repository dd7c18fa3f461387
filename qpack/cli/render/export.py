"""`qpack export`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from qpack.cli.render.text import emit
from qpack.core.errors import RegistryError, invalid_option
from qpack.core.problems import FILE_SYSTEM
from qpack.serve.served_release import Served


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
        raise invalid_option("--output", f"these are {len(files)} files: {names}", "Name a folder for them.")


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
            FILE_SYSTEM, f"{error.filename or folder}: {error.strerror}", hint="Name another folder with --output."
        ) from error
