"""Where the locks can be installed, and what that fetches: `requirements/platforms.py` looks it up at the index."""

from __future__ import annotations

import functools
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "platforms.json"
PYTHONS = ("3.11", "3.12", "3.13")
PROCESSORS = ("x86_64", "aarch64")

_UNPACKED = 3.8
"""Bytes of an environment over those of its wheels: 3.5 to 3.9 for the environments with torch's CPU build, 1.6 to 4.4
for the small ones. Not measured with CUDA.
"""


@dataclass(frozen=True)
class Status:
    """Whether a lock can be installed somewhere; `why` is what is missing, or what wasn't looked up."""

    works: bool
    why: str = ""


@dataclass(frozen=True)
class Size:
    """The wheels of a lock, for its own platform (the first of PYTHONS and PROCESSORS)."""

    packages: int
    bytes: int
    installed: int | None
    """About as many bytes the files in them take; None where it wasn't measured."""


def status(name: str, variant: str, python: str, processor: str) -> Status:
    """Of an environment's lock. One that nobody looked up counts as one that works."""
    found = _looked_up().get(f"{name} {variant}", {}).get("platforms", {}).get(f"{python} {processor}", {})
    return Status(bool(found.get("works", True)), str(found.get("why", "")))


def size(name: str, variant: str) -> Size | None:
    """What a lock fetches; None where nobody looked it up."""
    found = _looked_up().get(f"{name} {variant}")
    if found is None:
        return None
    fetched = int(found["bytes"])
    return Size(int(found["packages"]), fetched, round(fetched * _UNPACKED) if variant == "cpu" else None)


def running() -> str:
    """The version of the Python that runs qpack: `3.12`."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def processor() -> str:
    """The processor here, as wheels name it."""
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


@functools.cache
def _looked_up() -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(FILE.read_text())
    return found
