"""A release's model as an OCI image, which kubelets mount as an image volume: files below `/models`, and no program.

https://github.com/opencontainers/image-spec/blob/main/config.md, and the layout that KServe's model images have. The
files don't depend on a processor, so the image is an index of two platforms with the same layers. The same model gives
the same bytes.
"""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from qpack.core.hashing import open_regular
from qpack.core.records import FileRecord
from registry.core.bundle import ReleaseBundle
from registry.core.documents import Document
from registry.core.modelpack import INDEX_TYPE, MANIFEST_TYPE, canonical, digest_of
from registry.core.transfers import Counter
from registry.oci.blobs import Blobs
from registry.oci.distribution import Repository

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
PLATFORMS = ("amd64", "arm64")
FOLDER = "models"
"""The model's folder in the image."""

MODEL = "model/"
"""The model's folder in a release."""

# A container runtime stacks a limited number of layers (overlayfs: 127 with containerd).
_MOST_LAYERS = 96
_SMALL = 2**24
_BLOCK = 2**20


class Writer(Protocol):
    """What a tar is written to."""

    def write(self, data: bytes, /) -> int:
        """Write all of it."""


@dataclass(frozen=True)
class Layer:
    """A layer that is in the repository."""

    digest: str
    size: int

    @property
    def descriptor(self) -> Document:
        """Its entry in a manifest."""
        return {"mediaType": LAYER_TYPE, "digest": self.digest, "size": self.size}


def tag_of(version: str) -> str:
    """The tag of a version's image. It isn't a version itself."""
    return f"image-{version}"


def layers(files: tuple[FileRecord, ...]) -> tuple[tuple[FileRecord, ...], ...]:
    """The model's files by layer: small ones together, each large one alone, unless that gives too many layers."""
    model = [record for record in files if record.path.startswith(MODEL)]
    small = tuple(record for record in model if record.size_bytes <= _SMALL)
    large = [record for record in model if record.size_bytes > _SMALL]
    together = -(-len(large) // _MOST_LAYERS) or 1
    groups = [tuple(large[at : at + together]) for at in range(0, len(large), together)]
    return tuple(filter(None, [small, *groups]))


def push(blobs: Blobs, bundle: ReleaseBundle, tag: str, annotations: Mapping[str, str], counter: Counter) -> str:
    """Write the image of a release's model at a tag, and return its digest.

    Each layer is written to a temporary file first, so the disk has to hold the largest one.
    """
    repository = blobs.repository
    found = [_sent(blobs, bundle, group, counter) for group in layers(bundle.contents.files)]
    manifests = [_manifest(repository, blobs, found, platform, annotations) for platform in PLATFORMS]
    index = canonical(
        {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": manifests,
            "annotations": dict(annotations),
        }
    )
    repository.put_manifest(tag, index, INDEX_TYPE)
    return digest_of(index)


def _sent(blobs: Blobs, bundle: ReleaseBundle, group: tuple[FileRecord, ...], counter: Counter) -> Layer:
    folder = blobs.sessions.folder
    if folder is not None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix="layer-", suffix=".tar", dir=folder) as file:
        hashed = _Hashed(file)
        write(hashed, ((record, bundle.source(record)) for record in group))
        file.flush()
        layer = Layer(f"sha256:{hashed.digest.hexdigest()}", file.tell())
        blobs.send(layer.digest, Path(file.name), layer.size, counter)
    return layer


def write(out: Writer, files: Iterator[tuple[FileRecord, Path]]) -> None:
    """A layer: a tar (POSIX.1-2001) with the files below `models/`, readable by everybody, without owner or times."""
    folders: set[str] = set()
    for record, source in files:
        path = f"{FOLDER}/{record.path.removeprefix(MODEL)}"
        parts = path.split("/")[:-1]
        for folder in ("/".join(parts[:depth]) for depth in range(1, len(parts) + 1)):
            if folder not in folders:
                folders.add(folder)
                out.write(_header(folder, tarfile.DIRTYPE, 0o755, 0))
        out.write(_header(path, tarfile.REGTYPE, 0o644, record.size_bytes))
        with open_regular(source) as content:
            while block := content.read(_BLOCK):
                out.write(block)
        out.write(bytes(-record.size_bytes % tarfile.BLOCKSIZE))
    out.write(bytes(2 * tarfile.BLOCKSIZE))


def _header(path: str, kind: bytes, mode: int, size: int) -> bytes:
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode, entry.size = kind, mode, size
    return entry.tobuf(tarfile.PAX_FORMAT)


def _manifest(
    repository: Repository, blobs: Blobs, found: list[Layer], platform: str, annotations: Mapping[str, str]
) -> Document:
    config = canonical(
        {
            "architecture": platform,
            "os": "linux",
            "config": {"Labels": dict(annotations)},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in found]},
        }
    )
    blobs.send_bytes(config, digest_of(config))
    manifest = canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": digest_of(config), "size": len(config)},
            "layers": [layer.descriptor for layer in found],
            "annotations": dict(annotations),
        }
    )
    repository.put_manifest(digest_of(manifest), manifest)
    return {
        "mediaType": MANIFEST_TYPE,
        "digest": digest_of(manifest),
        "size": len(manifest),
        "platform": {"architecture": platform, "os": "linux"},
    }


class _Hashed:
    """Writes to a file, and hashes what it writes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)
