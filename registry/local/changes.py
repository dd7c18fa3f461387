"""Changes of the index: pushes, alias moves, attachments, removals. Pure: index in, next index and event out."""

from __future__ import annotations

import getpass
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from qpack.core.errors import RegistryError
from registry.core.codes import (
    ALIASED_VERSION,
    BAD_REASON,
    INVALID_NAME,
    NAME_TAKEN,
    NO_SUCH_VERSION,
    SHARED_VERSIONS,
    VERSION_EXISTS,
    VERSION_NEEDED,
    VERSION_REMOVED,
)
from registry.core.documents import Document
from registry.core.protocol import (
    DEFAULT_ALIAS,
    AliasMove,
    Event,
    EventKind,
    PushRequest,
    Ref,
    Removed,
    check_tag,
    did_you_mean,
)
from registry.local.index import SUBJECT, Entry, Index, notes_of

LONGEST_NOTE = 10_000
"""Characters of a reason. The index holds the last one."""


@dataclass(frozen=True)
class Change:
    """The next index. `event` is None if nothing changes; `there`: the content was published before."""

    index: Index
    entry: Entry
    event: Event | None
    there: bool


@dataclass(frozen=True)
class Author:
    """Who makes a change and why, and the verdict of the release."""

    actor: str
    note: str = ""
    verdict: str = ""


def whoami() -> str:
    """The user, for the history. In a container a user may have a number but no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def publish(index: Index, request: PushRequest, digest: str, size_bytes: int, verdict: str = "") -> Change:
    """Add a version whose manifest has that digest and size. `verdict` is that of its gates.

    Raises RegistryError when the version has other content, or a version and an alias would collide.
    """
    name, alias = request.name, request.alias
    entry = _same(index, name, request.version, digest)
    there = entry is not None
    if entry is None:
        entry = Entry(name, request.version or index.next_version(name), digest, size_bytes, now())
        back = tuple(gone for gone in index.removed if (gone.name, gone.version) != (name, entry.version))
        index = replace(index, entries=(*index.entries, entry), removed=back)
    before = index.alias(name, alias) if alias else None
    if alias:
        _check_free(index, name, alias)
        index = index.with_alias(name, alias, entry.version)
    moved = alias is not None and before != entry.version
    if there and not moved:
        return Change(index, entry, None, there)
    by = Author(request.actor, request.note, verdict)
    event = _event(entry, by, "alias" if there else "push", alias, before)
    return _made(Change(index, entry, None, there), event)


def move(index: Index, wanted: AliasMove, verdict: str = "") -> Change:
    """Point an alias at a version, whose gates said `verdict`. Raises RegistryError when the alias doesn't point where
    it was expected to.
    """
    name, alias, version = wanted.name, wanted.alias, wanted.version
    entry = index.version(name, version)
    if entry is None:
        known = [entry.version for entry in index.of(name)]
        hint = did_you_mean(version, known) or f"Its versions are: {', '.join(known)}."
        raise RegistryError(NO_SUCH_VERSION, f"{name!r} has no version {version!r}", hint=hint)
    _check_free(index, name, alias)
    before = index.alias(name, alias)
    wanted.check_expected(before)
    if before == version:
        return Change(index, entry, None, there=True)
    change = Change(index.with_alias(name, alias, version), entry, None, there=True)
    by = Author(wanted.actor, wanted.note, verdict)
    return _made(change, _event(entry, by, wanted.kind, alias, before))


def attach(index: Index, entry: Entry, descriptor: Document, by: Author) -> Change:
    """Add a manifest whose subject is the version, such as a signature. An existing one is kept.

    Raises RegistryError if the version was removed meanwhile.
    """
    index.find(Ref(entry.name, entry.version, entry.digest))
    if any(item.get("digest") == descriptor["digest"] for item in index.others):
        return Change(index, entry, None, there=True)
    index = replace(index, others=(*index.others, descriptor))
    return _made(Change(index, entry, None, there=True), _event(entry, by, "sign"))


def remove(index: Index, ref: Ref, by: Author, *, drop_aliases: bool) -> Change:
    """Remove a version, its aliases if `drop_aliases`, and attachments that no other version has.

    Raises RegistryError if `ref` doesn't identify one version by version or digest, or an alias points at it.
    """
    entry = _named(index, ref)
    aliases = index.aliases_of(entry)
    if aliases and not drop_aliases:
        raise pointed_at(f"{entry.name}:{entry.version}", aliases)
    why = by.note.strip().partition("\n")[0][:300]
    gone = {"name": entry.name, "version": entry.version, "digest": entry.digest}
    removed = Removed(**gone, when=now(), why=why, dropped=aliases)
    kept = tuple(one for one in index.entries if one != entry)
    shared = any(one.digest == entry.digest for one in kept)
    index = replace(
        index,
        entries=kept,
        aliases=tuple(one for one in index.aliases if one[0][0] != entry.name or one[0][1] not in aliases),
        others=tuple(one for one in index.others if shared or notes_of(one).get(SUBJECT) != entry.digest),
        removed=(*index.removed, removed),
    )
    event = _event(entry, by, "remove").model_copy(update={"dropped": aliases})
    return _made(Change(index, entry, None, there=True), event)


def pointed_at(version: str, aliases: Sequence[str]) -> RegistryError:
    """The error for a version that aliases keep from being removed."""
    point = "points" if len(aliases) == 1 else "point"
    return RegistryError(
        ALIASED_VERSION,
        f"{version} was not removed: {' and '.join(map(repr, aliases))} {point} at it",
        hint="Point them at another version first, or pass --drop-aliases to remove them too.",
    )


def _named(index: Index, ref: Ref) -> Entry:
    if ref.tag is None and ref.digest is None:
        raise RegistryError(
            VERSION_NEEDED, f"{ref} names no version", hint=f"Name one, such as {ref.name}:1 or {ref.name}@sha256:..."
        )
    entry = index.find(ref)
    if ref.tag is not None and ref.tag != entry.version:
        raise RegistryError(
            VERSION_NEEDED,
            f"{ref.tag!r} is an alias of {ref.name!r}, and points at version {entry.version}",
            hint=f"An alias can move: name the version, {ref.name}:{entry.version}.",
        )
    same = [one.version for one in index.of(ref.name) if one.digest == entry.digest]
    if ref.tag is None and len(same) > 1:
        raise RegistryError(
            SHARED_VERSIONS, f"{ref} is versions {' and '.join(same)}", hint=f"Name one: {ref.name}:{same[0]}."
        )
    return entry


def check_version(version: str) -> str:
    """`version` itself. Raises RegistryError if it can't be one."""
    if check_tag(version) == DEFAULT_ALIAS:
        raise RegistryError(
            INVALID_NAME, f"{DEFAULT_ALIAS!r} can't be a version: it is an alias", hint="Leave the version out."
        )
    return version


def now() -> str:
    """The current time, RFC 3339 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _same(index: Index, name: str, version: str | None, digest: str) -> Entry | None:
    """The version that has this content, or None."""
    if version is None:
        return next((entry for entry in reversed(index.of(name)) if entry.digest == digest), None)
    entry = index.version(name, version)
    if entry is None and index.alias(name, version) is not None:
        raise RegistryError(NAME_TAKEN, f"{version!r} is an alias of {name!r}", hint="Choose another version.")
    gone = index.tombstone(name, version)
    if gone is not None and gone.digest != digest:
        raise RegistryError(
            VERSION_REMOVED,
            f"{name}:{version} was removed on {gone.when[:10]}, and versions never change",
            hint=f"Publish as another version, such as {index.next_version(name)}, or leave the version out.",
        )
    if entry is not None and entry.digest != digest:
        raise RegistryError(
            VERSION_EXISTS,
            f"{name}:{version} exists with other content ({entry.digest}), and versions never change",
            hint=f"Publish as another version, such as {index.next_version(name)}, or leave the version out.",
        )
    return entry


def _check_free(index: Index, name: str, alias: str) -> None:
    if index.version(name, alias) is not None:
        raise RegistryError(NAME_TAKEN, f"{alias!r} is a version of {name!r}", hint="Choose another alias.")


def _made(change: Change, event: Event) -> Change:
    """The change with its event, which the new index holds."""
    return replace(change, index=replace(change.index, event=event), event=event)


def _event(entry: Entry, by: Author, what: EventKind, alias: str | None = None, previous: str | None = None) -> Event:
    if len(by.note) > LONGEST_NOTE:
        raise RegistryError(
            BAD_REASON, f"the reason has {len(by.note):,} characters", hint=f"Use up to {LONGEST_NOTE:,}."
        )
    return Event(
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
