"""What a push or a move of an alias does to the index. Pure: an index in, the next index and its event out."""

from __future__ import annotations

import getpass
import os
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from qpack.errors import RegistryError
from registry.index import Entry, Index
from registry.registry import DEFAULT_ALIAS, Event, Move, What, check_tag, did_you_mean


@dataclass(frozen=True)
class Change:
    """The next index. `event` is None when nothing changes; `there` says that the content was published before."""

    index: Index
    entry: Entry
    event: Event | None
    there: bool


@dataclass(frozen=True)
class Author:
    """Who changes something and why, and what the gates of the release said that it is about."""

    actor: str
    note: str
    verdict: str = ""


def whoami() -> str:
    """Who runs this, for the history: a container's user may have a number and no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def publish(
    index: Index, name: str, version: str | None, alias: str | None, digest: str, size_bytes: int, by: Author
) -> Change:
    """Add a version. Raises RegistryError when `version` has other content, or a version and an alias would collide."""
    entry = _same(index, name, version, digest)
    there = entry is not None
    if entry is None:
        entry = Entry(name, version or index.next_version(name), digest, size_bytes, now())
        index = replace(index, entries=(*index.entries, entry))
    before = index.alias(name, alias) if alias else None
    if alias:
        _check_free(index, name, alias)
        index = index.with_alias(name, alias, entry.version)
    moved = alias is not None and before != entry.version
    if there and not moved:
        return Change(index, entry, None, there)
    return _change(index, "alias" if there else "push", entry, alias, before, by, there)


def move(
    index: Index, name: str, alias: str, version: str, expected: str | None, by: Author, what: Move = "alias"
) -> Change:
    """Point an alias at a version. Raises RegistryError when it doesn't point where it was expected to."""
    entry = index.version(name, version)
    if entry is None:
        known = [entry.version for entry in index.of(name)]
        hint = did_you_mean(version, known) or f"Its versions are: {', '.join(known)}."
        raise RegistryError(f"{name!r} has no version {version!r}", hint=hint)
    _check_free(index, name, alias)
    before = index.alias(name, alias)
    if expected is not None and (before or "") != expected:
        now_at = f"points at version {before}" if before else "doesn't exist"
        wanted = f"to point at version {expected}" if expected else "not to exist"
        raise RegistryError(
            f"the alias {name}:{alias} was not moved: it was expected {wanted}, and it {now_at}",
            hint="Somebody else moved it. Look at the history, then decide again.",
        )
    if before == version:
        return Change(index, entry, None, there=True)
    return _change(index.with_alias(name, alias, version), what, entry, alias, before, by, there=True)


def attach(index: Index, entry: Entry, descriptor: dict[str, Any], by: Author) -> Change:
    """Add a manifest whose subject is the version's: a signature. Nothing changes when it is there already."""
    if any(item.get("digest") == descriptor["digest"] for item in index.others):
        return Change(index, entry, None, there=True)
    index = replace(index, others=(*index.others, descriptor))
    return _change(index, "sign", entry, None, None, by, there=True)


def check_version(version: str) -> str:
    """`version` itself, or RegistryError when it can't be one."""
    if check_tag(version) == DEFAULT_ALIAS:
        raise RegistryError(f"{DEFAULT_ALIAS!r} can't be a version: it is an alias", hint="Leave the version out.")
    return version


def now() -> str:
    """The time, as RFC 3339 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _same(index: Index, name: str, version: str | None, digest: str) -> Entry | None:
    """The version that has this content already, or None."""
    if version is None:
        return next((entry for entry in reversed(index.of(name)) if entry.digest == digest), None)
    entry = index.version(name, version)
    if entry is None and index.alias(name, version) is not None:
        raise RegistryError(f"{version!r} is an alias of {name!r}", hint="Choose another version.")
    if entry is not None and entry.digest != digest:
        raise RegistryError(
            f"{name}:{version} exists with other content ({entry.digest}), and versions never change",
            hint=f"Publish as another version, such as {index.next_version(name)}, or leave the version out.",
        )
    return entry


def _check_free(index: Index, name: str, alias: str) -> None:
    if index.version(name, alias) is not None:
        raise RegistryError(f"{alias!r} is a version of {name!r}", hint="Choose another alias.")


def _change(
    index: Index,
    what: What,
    entry: Entry,
    alias: str | None,
    previous: str | None,
    by: Author,
    there: bool,
) -> Change:
    event = Event(
        id=uuid.uuid4().hex,
        when=now(),
        who=by.actor,
        what=what,
        name=entry.name,
        version=entry.version,
        digest=entry.digest,
        alias=alias,
        previous=previous,
        note=by.note,
        verdict=by.verdict,
    )
    return Change(replace(index, event=event), entry, event, there)
