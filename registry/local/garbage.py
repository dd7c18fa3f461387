"""Garbage collection: mark, then sweep."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from qpack.core.errors import RegistryError
from registry.core import modelpack
from registry.core.files import parts_of
from registry.core.protocol import Collected
from registry.local.blobs import Blobs
from registry.local.index import Index


@dataclass
class Marked:
    """Needed hex digests, and manifests that can't be read, with the reason."""

    needed: set[str] = field(default_factory=set)
    unreadable: list[str] = field(default_factory=list)


def collect(index: Index, blobs: Blobs, *, dry_run: bool) -> Collected:
    """Remove blobs that nothing needs. The caller holds the locks: no push runs, and the index doesn't change.

    If a manifest can't be read, it may need any blob: then only temporary files are removed.
    """
    marked = marked_by(index, blobs)
    # No push runs, so everything in ingest/ and every temporary file is of a killed process.
    rubbish = sorted([*blobs.ingest.glob("*"), *parts_of(blobs.root)])
    unneeded = sorted(path for path in blobs.folder.iterdir() if path.name not in marked.needed)
    swept, kept = ([], unneeded) if marked.unreadable else (unneeded, [])
    doubts = [doubt for doubt in blobs.doubts.glob("*") if doubt.name not in marked.needed and not marked.unreadable]
    freed = sum(size_of(path) for path in (*swept, *rubbish))
    if not dry_run:
        for path in (*swept, *rubbish, *doubts):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return Collected(
        blobs=tuple(f"sha256:{path.name}" for path in swept),
        temporary=tuple(str(path.relative_to(blobs.root)) for path in rubbish),
        bytes_freed=freed,
        dry_run=dry_run,
        kept=tuple(f"sha256:{path.name}" for path in kept),
        unreadable=tuple(marked.unreadable),
    )


def marked_by(index: Index, blobs: Blobs) -> Marked:
    """What the entries of the index need, including those of other programs.

    A release needs its config and its files; other digests in its manifest are kept if present. Other manifests are
    followed at any depth; their `subject` may be absent.
    """
    marked = Marked()
    seen: set[tuple[str, bool]] = set()
    waiting = [(entry.digest, f"{entry.name}:{entry.version}", True) for entry in index.entries]
    waiting += [
        (str(item.get("digest")), f"the entry {str(item.get('digest'))[:19]} of another program", True)
        for item in index.others
    ]
    while waiting:
        digest, of, must = waiting.pop()
        if (digest, must) in seen:
            continue
        seen.add((digest, must))
        marked.needed.add(digest.removeprefix("sha256:"))
        try:
            data = blobs.read(digest, f"the manifest {digest}", modelpack.LARGEST_MANIFEST)
            needs = modelpack.needs(data)
        except (RegistryError, OSError, ValueError) as error:
            if must:
                why = error.what if isinstance(error, RegistryError) else str(error)
                marked.unreadable.append(f"{of}: {why}")
            continue
        release = _is_release(data)
        for need in needs:
            marked.needed.add(need.digest.removeprefix("sha256:"))
            if need.manifest:
                waiting.append((need.digest, of, must and not release and not need.weak))
    return marked


def _is_release(data: bytes) -> bool:
    try:
        modelpack.read_manifest(data, "it")
    except RegistryError:
        return False
    return True


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder. Links count for themselves."""
    if path.is_dir() and not path.is_symlink():
        return sum(size_of(child) for child in path.iterdir())
    return path.lstat().st_size
