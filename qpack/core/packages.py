"""Distributions that ship a model or data: installed beside qpack, or in its environment `demo`.

Their files are read; nothing of them is imported.
"""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

from qpack.core.home import home

DEMO = "demo"
"""The environment with the packages of the demo (quantize/checkpoint/envs/demo)."""


def distribution(name: str) -> Distribution:
    """The installed distribution `name`; one that is installed beside qpack comes first.

    Raises:
        PackageNotFoundError: it is in neither place, or `name` is no name.
    """
    try:
        return importlib.metadata.distribution(name)
    except ValueError as error:
        raise PackageNotFoundError(name) from error
    except PackageNotFoundError:
        for folder in _folders():
            for found in importlib.metadata.distributions(name=name, path=[str(folder)]):
                return found
        raise


def _folders() -> list[Path]:
    """site-packages of the finished environments `demo`, the newest first."""
    made = [path.parent for path in (home() / "envs").glob(f"{DEMO}-cpu-*/qpack.json")]
    made.sort(key=lambda folder: (folder / "qpack.json").stat().st_mtime_ns, reverse=True)
    return [packages for folder in made for packages in folder.glob("lib/python*/site-packages")]
