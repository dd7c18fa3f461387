"""What an engine's environment is made of: an adapter names it, and `qpack.runtime.environments` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qpack.runtime.variables import Group


@dataclass(frozen=True)
class Spec:
    """An environment that can be made. `folder` holds cpu.txt and cuda.txt; `imports` is what must import in it.

    `inherits` is what its processes get of qpack's own variables beside what every engine gets.
    """

    name: str
    folder: Path
    imports: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    inherits: tuple[Group, ...] = ()

    def lock(self, variant: str) -> Path:
        """The lock for `cpu` or `cuda`; an engine that needs no accelerator has only the first."""
        path = self.folder / f"{variant}.txt"
        return path if path.exists() else self.folder / "cpu.txt"

    def python(self) -> str | None:
        """The Python that it needs, where that isn't the one of the other locks (`python.txt`: `3.12`)."""
        path = self.folder / "python.txt"
        return path.read_text().strip() if path.exists() else None

    def sdists(self) -> tuple[str, ...]:
        """The packages of its locks that are built from source, because there is no wheel of them."""
        path = self.folder / "sdists.txt"
        return tuple(sorted(path.read_text().split())) if path.exists() else ()
