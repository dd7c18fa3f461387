"""What a collection of garbage keeps: mark, before anything is swept."""

from __future__ import annotations

from pathlib import Path

from registry import modelpack
from registry.blobs import Blobs
from registry.index import Index


def marked_by(index: Index, blobs: Blobs) -> frozenset[str]:
    """The hex digests that some entry of the index needs, those of other programs included.

    Raises RegistryError when a manifest can't be read: then nobody knows what it needs, and nothing may be removed.
    """
    waiting = [entry.digest for entry in index.entries] + [str(item.get("digest")) for item in index.others]
    marked: set[str] = set()
    while waiting:
        digest = waiting.pop()
        if digest in marked:
            continue
        marked.add(digest)
        for part, nested in modelpack.needs(blobs.read(digest, f"the manifest {digest}", modelpack.LARGEST_MANIFEST)):
            if nested:
                waiting.append(part)
            else:
                marked.add(part)
    return frozenset(digest.removeprefix("sha256:") for digest in marked)


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(size_of(child) for child in path.iterdir())
    return path.stat().st_size
