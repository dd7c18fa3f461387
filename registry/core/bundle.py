"""A release that is copied between registries: its manifest and config as bytes, and the paths of its files.

Registries store the manifest unchanged, so a release has the same digest everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qpack.core.errors import RegistryError
from qpack.core.hashing import in_threads, sha256
from qpack.core.problems import NOT_A_FILE, NOT_A_FOLDER, Code
from qpack.core.records import FileRecord
from registry.core import modelpack
from registry.core.files import confined

_EMPTY_FOLDER = Code("empty-folder", "A folder is empty.")

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what); counts are bytes where files are copied."""


def nothing(_done: int, _total: int, _what: str) -> None:
    """Progress that is not shown."""


@dataclass(frozen=True)
class Attachment:
    """A manifest whose `subject` is a release, such as a signature, and its small blobs by digest."""

    manifest: bytes
    blobs: Mapping[str, bytes]

    @property
    def media_type(self) -> str:
        """The media type of the attachment."""
        return str(json.loads(self.manifest).get("artifactType", ""))


@dataclass(frozen=True)
class ReleaseBundle:
    """`sources` maps a digest (`sha256:...`) to a file that had this content when the bundle was made."""

    manifest: bytes
    config: bytes
    contents: modelpack.Contents
    sources: Mapping[str, Path]
    attached: tuple[Attachment, ...] = ()

    @property
    def digest(self) -> str:
        """The digest of the manifest, `sha256:...`; it identifies the release."""
        return modelpack.digest_of(self.manifest)

    @property
    def size_bytes(self) -> int:
        """The bytes of all files; duplicates count once."""
        return sum({record.sha256: record.size_bytes for record in self.contents.files}.values())

    def source(self, record: FileRecord) -> Path:
        """A file with the content of `record`."""
        return self.sources[f"sha256:{record.sha256}"]


def pack(folder: Path, annotations: Mapping[str, str]) -> ReleaseBundle:
    """The files in `folder` as a release. Raises RegistryError for files that can't be published."""
    paths = files_in(folder)
    digests = in_threads(lambda path: sha256(folder / path), paths)
    records = tuple(
        FileRecord(path=path, size_bytes=(folder / path).stat().st_size, sha256=digest)
        for path, digest in zip(paths, digests, strict=True)
    )
    config = modelpack.config(records, annotations)
    manifest = modelpack.manifest(records, config, annotations)
    sources = {f"sha256:{record.sha256}": folder / record.path for record in records}
    return ReleaseBundle(manifest, config, modelpack.read_manifest(manifest, str(folder)), sources)


def files_in(folder: Path) -> tuple[str, ...]:
    """The files below `folder` as sorted POSIX paths. Raises RegistryError for files that can't be published."""
    if not folder.is_dir():
        raise RegistryError(NOT_A_FOLDER, f"{folder} is not a folder", hint="Pass the folder that holds the release.")
    found = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise RegistryError(
                NOT_A_FILE,
                f"{path} is a link or a special file",
                hint="Replace it by the file itself, then publish again.",
            )
        if path.is_file():
            confined(folder, relative)
            found.append(relative)
    if not found:
        raise RegistryError(_EMPTY_FOLDER, f"{folder} is empty", hint="Pass the folder that holds the release.")
    return tuple(sorted(found))
