"""The registries that qpack knows, by kind. Adding one: a module that satisfies `Registry`, and one line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qpack.errors import RegistryError
from registry.local import LocalRegistry
from registry.registry import Registry, did_you_mean


def _local(location: str) -> Registry:
    return LocalRegistry(Path(location).expanduser())


REGISTRIES: dict[str, Callable[[str], Registry]] = {
    "local": _local,
}


def open_registry(kind: str, location: str) -> Registry:
    """The registry of that kind at `location` (of a local one, its folder). Raises RegistryError if there is none."""
    if kind not in REGISTRIES:
        hint = did_you_mean(kind, REGISTRIES) or f"There are: {', '.join(REGISTRIES)}."
        raise RegistryError(f"there is no kind of registry called {kind!r}", hint=hint)
    return REGISTRIES[kind](location)
