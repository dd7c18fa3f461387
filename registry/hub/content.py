"""The files of a release on the Hub, compared with a commit by checksum, without downloads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qpack.core.hashing import open_regular
from registry.core.bundle import ReleaseBundle
from registry.hub.layout import ATTACHED, CONFIG, MANIFEST, hub_path


@dataclass(frozen=True)
class Content:
    """A file to upload: its path on the Hub, and bytes or a file."""

    path: str
    size_bytes: int
    sha256: str
    source: Path | bytes

    def git_oid(self) -> str:
        """The SHA-1 that git gives the content (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects)."""
        digest = hashlib.sha1(f"blob {self.size_bytes}\0".encode(), usedforsecurity=False)
        if isinstance(self.source, bytes):
            digest.update(self.source)
        else:
            with open_regular(self.source) as file:
                while block := file.read(1024 * 1024):
                    digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True)
class Stored:
    """A file on the Hub. `sha256` is known for large files (LFS), `git_oid` for others."""

    path: str
    size_bytes: int
    git_oid: str
    sha256: str | None

    def has(self, content: Content) -> bool:
        """Whether it has this content."""
        if self.size_bytes != content.size_bytes:
            return False
        return self.sha256 == content.sha256 if self.sha256 is not None else self.git_oid == content.git_oid()


@dataclass(frozen=True)
class HubFiles:
    """A release on the Hub: files with manifest and config, and attachments."""

    contents: tuple[Content, ...]
    attached: tuple[Content, ...]


def contents_of(bundle: ReleaseBundle) -> tuple[Content, ...]:
    """The files of a release at their paths on the Hub, with manifest and config."""
    files = [
        Content(hub_path(record.path), record.size_bytes, record.sha256, bundle.source(record))
        for record in bundle.contents.files
    ]
    for path, data in ((MANIFEST, bundle.manifest), (CONFIG, bundle.config)):
        files.append(Content(path, len(data), hashlib.sha256(data).hexdigest(), data))
    return tuple(sorted(files, key=lambda content: content.path))


def attachments_of(bundle: ReleaseBundle) -> tuple[Content, ...]:
    """The attachments of a release as files on the Hub, without duplicates."""
    folder = f"{ATTACHED}/{bundle.digest.removeprefix('sha256:')}"
    found = {}
    for attached in bundle.attached:
        for data in (attached.manifest, *attached.blobs.values()):
            digest = hashlib.sha256(data).hexdigest()
            found[digest] = Content(f"{folder}/{digest}", len(data), digest, data)
    return tuple(content for _, content in sorted(found.items()))


def same_files(there: Mapping[str, Stored], contents: Iterable[Content]) -> bool:
    """Whether a commit has exactly these files, apart from attachments."""
    wanted = {content.path: content for content in contents}
    return _files(there) == set(wanted) and has_all(there, wanted.values())


def has_all(there: Mapping[str, Stored], contents: Iterable[Content]) -> bool:
    """Whether a commit has these files."""
    return all(content.path in there and there[content.path].has(content) for content in contents)


def obsolete_files(there: Mapping[str, Stored], contents: Iterable[Content]) -> tuple[str, ...]:
    """The files of the previous version that this one doesn't have. Attachments stay."""
    return tuple(sorted(_files(there) - {content.path for content in contents}))


def _files(there: Mapping[str, Stored]) -> set[str]:
    return {path for path in there if path != ".gitattributes" and not path.startswith(f"{ATTACHED}/")}


def foreign_files(there: Mapping[str, Stored]) -> set[str]:
    """Files that a release would overwrite or remove in a repository without one. A new repository has a README."""
    if MANIFEST in there:
        return set()
    return set(there) - {".gitattributes", "README.md"}
