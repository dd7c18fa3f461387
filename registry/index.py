"""The index of an OCI image layout: which versions and aliases there are. Pure; `local` reads and writes the file.

https://github.com/opencontainers/image-spec/blob/main/image-layout.md#indexjson-file. Every version and every alias is
an entry of its own named `name:tag`, so that any OCI client can copy a release by either. The last change is kept in
the index's annotations: index and change appear in one rename, and the history can be completed from it after a kill.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from qpack.errors import RegistryError
from registry.modelpack import ARTIFACT_TYPE, CREATED, INDEX_TYPE, MANIFEST_TYPE, checked_digest
from registry.registry import DEFAULT_ALIAS, Event, Ref, check_name, check_tag, did_you_mean

REF_NAME = "org.opencontainers.image.ref.name"
VERSION = "org.qpack.version"
ALIAS = "org.qpack.alias"
LAST_EVENT = "org.qpack.last-event"


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
    """Versions in the order of publication, aliases as ((name, alias), version), other programs' entries untouched."""

    entries: tuple[Entry, ...] = ()
    aliases: tuple[tuple[tuple[str, str], str], ...] = ()
    others: tuple[dict[str, Any], ...] = ()
    event: Event | None = None

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
        """One more than the largest integer among the versions of `name`."""
        return str(1 + max((int(entry.version) for entry in self.of(name) if entry.version.isdecimal()), default=0))

    def with_alias(self, name: str, alias: str, version: str) -> Index:
        """The same index with the alias at `version`."""
        return replace(self, aliases=tuple(sorted({**dict(self.aliases), (name, alias): version}.items())))

    def find(self, ref: Ref) -> Entry:
        """The version that `ref` names. Raises RegistryError, with what is close, when there is none."""
        versions = self.of(ref.name)
        if not versions:
            names = sorted({entry.name for entry in self.entries})
            close = did_you_mean(ref.name, names)
            hint = close or (f"There are: {_some(names)}." if names else "Nothing was published here yet.")
            raise RegistryError(f"there is no release named {ref.name!r}", hint=hint)
        if ref.tag is None and ref.digest is not None:
            return self._by_digest(ref, versions)
        tag = ref.tag or DEFAULT_ALIAS
        entry = self.version(ref.name, tag) or self.version(ref.name, self.alias(ref.name, tag) or "")
        if entry is None:
            tags = [*(e.version for e in reversed(versions)), *(a for (n, a), _ in self.aliases if n == ref.name)]
            hint = f"{did_you_mean(tag, tags)} There are: {_some(tags)}.".strip()
            if ref.tag is None:
                # A release that was pulled moves no alias.
                hint += f" Name one, such as {ref.name}:{tags[0]}."
            raise RegistryError(f"{ref.name!r} has no version or alias {tag!r}", hint=hint)
        if ref.digest not in (None, entry.digest):
            raise RegistryError(
                f"{ref.name}:{tag} is {entry.digest}, not {ref.digest}",
                hint="Leave the digest out to take what the tag names now, or leave the tag out to take the digest.",
            )
        return entry

    @staticmethod
    def _by_digest(ref: Ref, versions: tuple[Entry, ...]) -> Entry:
        for entry in versions:
            if entry.digest == ref.digest:
                return entry
        known = _some([f"{entry.version} ({entry.digest[:19]}...)" for entry in reversed(versions)])
        raise RegistryError(f"no version of {ref.name!r} has the digest {ref.digest}", hint=f"There are: {known}.")

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
        value: dict[str, Any] = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}
        if self.event is not None:
            value["annotations"] = {LAST_EVENT: self.event.model_dump_json()}
        return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Index:
        """Read `index.json`: `Index.from_json(index.to_json(), _) == index`. Raises RegistryError when damaged."""
        try:
            value = json.loads(data)
            event = value.get("annotations", {}).get(LAST_EVENT)
            entries, aliases, others = [], [], []
            for item in value["manifests"]:
                notes = item.get("annotations", {})
                if VERSION not in notes:
                    others.append(item)
                    continue
                version, name = notes[VERSION], notes[REF_NAME].rpartition(":")[0]
                if ALIAS in notes:
                    aliases.append(((name, check_tag(notes[ALIAS])), version))
                else:
                    digest = checked_digest(item["digest"])
                    if type(item["size"]) is not int:
                        raise ValueError("a size is not a number of bytes")
                    entries.append(Entry(name, check_tag(version), digest, item["size"], str(notes[CREATED])))
                check_name(name)
            index = cls(
                tuple(entries),
                tuple(sorted(aliases)),
                tuple(others),
                Event.model_validate_json(event) if event is not None else None,
            )
            known = {(entry.name, entry.version) for entry in index.entries}
            if dangling := [alias for (name, alias), version in index.aliases if (name, version) not in known]:
                raise ValueError(f"the alias {dangling[0]!r} points at a version that isn't there")
            # What JSON can say and UTF-8 can't (half of a surrogate pair) must not stop the next change.
            index.to_json()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, RegistryError) as error:
            raise RegistryError(
                f"{where} is damaged ({type(error).__name__}: {error})",
                hint="Put a copy of the file back from a backup; the blobs beside it are untouched.",
            ) from error
        return index


def _descriptor(entry: Entry, tag: str, notes: dict[str, str]) -> dict[str, Any]:
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
