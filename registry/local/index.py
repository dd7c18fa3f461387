"""The index of an OCI image layout: versions and aliases. Pure; `registry.local.registry` reads and writes the file.

https://github.com/opencontainers/image-spec/blob/main/image-layout.md#indexjson-file. Every version and every alias is
its own entry `name:tag`, so any OCI client can copy a release by either. The annotations hold the last event: index and
event change in one rename, and after a kill the history is completed from it.

The index has a SHA-256 of everything that qpack wrote (`CHECKSUM`), so any damage is an error and never a wrong answer.
Entries of other programs aren't covered: those programs may change them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from qpack.core.errors import RegistryError
from registry.core import documents
from registry.core.codes import DAMAGED_RECORD, DIGEST_DIFFERS, NO_SUCH_RELEASE, NO_SUCH_VERSION
from registry.core.documents import Document, Json
from registry.core.modelpack import ARTIFACT_TYPE, CREATED, INDEX_TYPE, MANIFEST_TYPE, canonical, checked_digest
from registry.core.protocol import DEFAULT_ALIAS, Event, Ref, Removed, check_name, check_tag, did_you_mean

REF_NAME = "org.opencontainers.image.ref.name"
VERSION = "org.qpack.version"
ALIAS = "org.qpack.alias"
SUBJECT = "org.qpack.subject"
"""Annotation of attachments: the digest of the release."""
LAST_EVENT = "org.qpack.last-event"
REMOVED = "org.qpack.removed"
CHECKSUM = "org.qpack.checksum"
SEALED = "application/vnd.qpack.registry.v1+json"
"""The type of an index with a checksum. If the checksum is missing, the index is damaged and not just older."""
UNSEALED = ""
"""The checksum of an index that was edited on purpose."""

LARGEST = 64 * 2**20
"""The largest index that is read: about 50,000 versions."""


@dataclass(frozen=True)
class Entry:
    """A version of `name`: the manifest's digest (`sha256:...`) and size, and when it was published (ISO 8601, UTC)."""

    name: str
    version: str
    digest: str
    size_bytes: int
    created: str


@dataclass(frozen=True)
class Index:
    """Versions in the order of publication, aliases as ((name, alias), version), entries of other programs unchanged.

    The numbers of `removed` versions aren't used again.
    """

    entries: tuple[Entry, ...] = ()
    aliases: tuple[tuple[tuple[str, str], str], ...] = ()
    others: tuple[Document, ...] = ()
    event: Event | None = None
    removed: tuple[Removed, ...] = ()

    def of(self, name: str) -> tuple[Entry, ...]:
        """The versions of `name`, oldest first."""
        return tuple(entry for entry in self.entries if entry.name == name)

    def version(self, name: str, version: str) -> Entry | None:
        """That version, or None."""
        return next((entry for entry in self.of(name) if entry.version == version), None)

    def alias(self, name: str, alias: str) -> str | None:
        """The version that the alias points at, or None."""
        return dict(self.aliases).get((name, alias))

    def aliases_of(self, entry: Entry) -> tuple[str, ...]:
        """The aliases that point at a version, sorted."""
        found = (alias for (name, alias), version in self.aliases if (name, version) == (entry.name, entry.version))
        return tuple(sorted(found))

    def next_version(self, name: str) -> str:
        """One more than the largest integer version that `name` has or had."""
        known = [entry.version for entry in self.of(name)]
        known += [gone.version for gone in self.removed if gone.name == name]
        return str(1 + max((int(version) for version in known if version.isdecimal()), default=0))

    def tombstone(self, name: str, version: str) -> Removed | None:
        """When and why that version was removed, or None."""
        return next((gone for gone in self.removed if (gone.name, gone.version) == (name, version)), None)

    def aliases_at(self, name: str) -> dict[str, str]:
        """Versions by alias, of one name."""
        return {alias: version for (of, alias), version in self.aliases if of == name}

    def with_alias(self, name: str, alias: str, version: str) -> Index:
        """The index with the alias at `version`."""
        return replace(self, aliases=tuple(sorted({**dict(self.aliases), (name, alias): version}.items())))

    def find(self, ref: Ref) -> Entry:
        """The version that `ref` names. Raises RegistryError, with close matches, if there is none."""
        versions = self.of(ref.name)
        if not versions:
            names = sorted({entry.name for entry in self.entries})
            close = did_you_mean(ref.name, names)
            hint = close or (f"Available: {_some(names)}." if names else "Nothing was published here yet.")
            hint = self._gone(ref) or hint
            raise RegistryError(NO_SUCH_RELEASE, f"there is no release named {ref.name!r}", hint=hint)
        if ref.tag is None and ref.digest is not None:
            return self._by_digest(ref, versions)
        tag = ref.tag or DEFAULT_ALIAS
        entry = self.version(ref.name, tag) or self.version(ref.name, self.alias(ref.name, tag) or "")
        if entry is None:
            tags = [*(e.version for e in reversed(versions)), *(a for (n, a), _ in self.aliases if n == ref.name)]
            hint = f"{did_you_mean(tag, tags)} Available: {_some(tags)}.".strip()
            if ref.tag is None:
                # Pulling moves no alias.
                hint += f" Name one, such as {ref.name}:{tags[0]}."
            hint = f"{self._gone(ref)} {hint}".strip()
            raise RegistryError(NO_SUCH_VERSION, f"{ref.name!r} has no version or alias {tag!r}", hint=hint)
        if ref.digest not in (None, entry.digest):
            raise RegistryError(
                DIGEST_DIFFERS,
                f"{ref.name}:{tag} is {entry.digest}, not {ref.digest}",
                hint="Leave the digest out to take what the tag names now, or leave the tag out to take the digest.",
            )
        return entry

    def _gone(self, ref: Ref) -> str:
        gone = self.tombstone(ref.name, ref.tag or "")
        return f"Version {gone.version} was removed on {gone.when[:10]}: {gone.why}." if gone else ""

    @staticmethod
    def _by_digest(ref: Ref, versions: tuple[Entry, ...]) -> Entry:
        for entry in versions:
            if entry.digest == ref.digest:
                return entry
        known = _some([f"{entry.version} ({entry.digest[:19]}...)" for entry in reversed(versions)])
        raise RegistryError(
            NO_SUCH_VERSION, f"no version of {ref.name!r} has the digest {ref.digest}", hint=f"Available: {known}."
        )

    def to_json(self) -> bytes:
        """The content of `index.json`."""
        by_version = {(entry.name, entry.version): entry for entry in self.entries}
        manifests = [
            *self.others,
            *(_descriptor(entry, entry.version, {VERSION: entry.version}) for entry in self.entries),
            *(
                _descriptor(by_version[name, version], alias, {VERSION: version, ALIAS: alias})
                for (name, alias), version in self.aliases
            ),
        ]
        value: dict[str, Json] = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}
        notes: dict[str, Json] = {}
        if self.event is not None:
            notes[LAST_EVENT] = self.event.line()
        if self.removed:
            notes[REMOVED] = json.dumps([gone.model_dump() for gone in self.removed], ensure_ascii=False)
        if any(map(_ours, manifests)) or notes:
            value["artifactType"] = SEALED
            value["annotations"] = {**notes, CHECKSUM: _checksum(manifests, notes)}
        return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Index:
        """Read `index.json`: `Index.from_json(index.to_json(), _) == index`. Raises RegistryError when damaged."""
        try:
            value = documents.parse(data)
            noted = notes_of(value)
            manifests = value["manifests"]
            if not isinstance(manifests, list):
                raise TypeError("its manifests are not a list")
            checksum = noted.get(CHECKSUM, None if "artifactType" in value else UNSEALED)
            if checksum != UNSEALED and checksum != _checksum(manifests, noted):
                raise ValueError("its checksum doesn't match")
            removed = _text(noted, REMOVED) if REMOVED in noted else "[]"
            entries, aliases, others = [], [], []
            for item in manifests:
                notes = notes_of(item)
                if VERSION not in notes:
                    # Half of a surrogate pair is valid JSON but not UTF-8; it would make the next change fail.
                    canonical(item)
                    others.append(item)
                    continue
                name, _, tag = _text(notes, REF_NAME).rpartition(":")
                version = check_tag(_text(notes, VERSION))
                check_name(name)
                if check_tag(_text(notes, ALIAS) if ALIAS in notes else version) != tag:
                    raise ValueError(f"{name}:{tag} and its version or alias don't agree")
                if ALIAS in notes:
                    aliases.append(((name, tag), version))
                else:
                    digest = checked_digest(item["digest"])
                    created = _text(notes, CREATED)
                    if type(item["size"]) is not int or item["size"] < 0:
                        raise ValueError(f"the size of {name}:{tag} is not a number of bytes")
                    created.encode()
                    entries.append(Entry(name, version, digest, item["size"], created))
            index = cls(
                tuple(entries),
                tuple(sorted(aliases)),
                tuple(others),
                Event.model_validate_json(_text(noted, LAST_EVENT)) if LAST_EVENT in noted else None,
                tuple(Removed.model_validate(gone) for gone in documents.parse(removed)),
            )
            _check(index)
        except (ValueError, KeyError, TypeError, AttributeError, RegistryError) as error:
            raise RegistryError(
                DAMAGED_RECORD,
                f"{where} is damaged ({type(error).__name__}: {str(error)[:300]})",
                hint="Restore the file from a backup; the blobs beside it are intact. If it was edited on purpose, set"
                f" its annotation {CHECKSUM} to an empty string.",
            ) from error
        return index


def _check(index: Index) -> None:
    """Raises ValueError for an index that is inconsistent or ambiguous."""
    known = [(entry.name, entry.version) for entry in index.entries]
    there = set(known)
    named = [name for name, _ in index.aliases]
    if len(there) < len(known) or len(set(named)) < len(named):
        raise ValueError("a version or an alias is a duplicate")
    if both := there.intersection(named):
        raise ValueError(f"{':'.join(min(both))} is a version and an alias")
    if dangling := [alias for (name, alias), version in index.aliases if (name, version) not in there]:
        raise ValueError(f"the alias {dangling[0]!r} points at a version that isn't there")


def _ours(item: Document) -> bool:
    """Whether qpack wrote an entry. If its annotations are lost, the checksum doesn't match."""
    notes = notes_of(item)
    return VERSION in notes or SUBJECT in notes


def notes_of(item: Document) -> Document:
    """The annotations of an entry, which may have none. Raises TypeError when they aren't an object."""
    notes = item.get("annotations")
    if notes is not None and not isinstance(notes, Mapping):
        raise TypeError("annotations are not an object")
    return notes or {}


def _text(notes: Document, key: str) -> str:
    value = notes[key]
    if not isinstance(value, str):
        raise TypeError(f"the annotation {key} is not a text")
    return value


def _checksum(manifests: Sequence[Document], notes: Document) -> str:
    """The SHA-256 (hex) of everything that qpack wrote, independent of the order of entries."""
    found = hashlib.sha256()
    for line in sorted(canonical(item) for item in manifests if _ours(item)):
        found.update(line + b"\n")
    found.update(canonical({key: notes[key] for key in (LAST_EVENT, REMOVED) if key in notes}))
    return found.hexdigest()


def _descriptor(entry: Entry, tag: str, notes: dict[str, str]) -> Document:
    return {
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "digest": entry.digest,
        "size": entry.size_bytes,
        "annotations": {REF_NAME: f"{entry.name}:{tag}", CREATED: entry.created, **notes},
    }


def _some(words: Iterable[str]) -> str:
    listed = list(words)
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    return ", ".join(listed[:8]) + more
