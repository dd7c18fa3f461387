"""How far uv is with fetching packages, from what it prints.

Without a terminal uv prints a line when it begins to fetch a package of a megabyte or more (`Downloading torch
(180.1MiB)`), and one when it has it (` Downloaded torch`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_BEGUN = re.compile(r"^Downloading (\S+) \(([\d.]+)(KiB|MiB|GiB)\)$", re.MULTILINE)
_DONE = re.compile(r"^ Downloaded (\S+)$", re.MULTILINE)
_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass
class Progress:
    """Called now and then: reports each large package that was fetched since, and how much that is in all."""

    name: str
    log: Path
    report: Callable[[str], None]
    seen: set[str] = field(default_factory=set)

    def __call__(self) -> None:
        text = ""
        with contextlib.suppress(OSError):
            text = self.log.read_text(errors="replace")
        begun, done = fetched(text)
        if new := [package for package in done if package not in self.seen]:
            self.seen.update(new)
            have, of = sum(begun[package] for package in self.seen), sum(begun.values())
            self.report(f"{self.name}: {', '.join(new)} fetched; {mib(have)} of {mib(of)} that are under way")


def fetched(printed: str) -> tuple[dict[str, int], list[str]]:
    """({package: bytes} of those that uv began to fetch, the packages that it has), in order. Pure."""
    begun = {name: round(float(count) * _UNITS[unit]) for name, count, unit in _BEGUN.findall(printed)}
    return begun, [name for name in dict.fromkeys(_DONE.findall(printed)) if name in begun]


def mib(count: int) -> str:
    """`812 MiB`, `3.1 GiB`."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
