"""The local registry: one folder, an OCI image layout (https://github.com/opencontainers/image-spec/blob/main/image-layout.md).

    ROOT/oci-layout, ROOT/index.json     as the specification says; index.json changes by rename
    ROOT/blobs/sha256/HEX                files, configs and manifests, shared between versions
    ROOT/history.jsonl                   every change, one JSON object per line; append-only
    ROOT/ingest/                         incoming files of running pushes
    ROOT/.content.lock                   flock(2): shared by pushes, exclusive for `collect`
    ROOT/.index.lock                     flock(2): exclusive while index.json changes

Readers take no lock (`registry.local.reader`). A version exists once index.json names it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from qpack.core.errors import RegistryError
from qpack.core.records import Published
from registry.core import modelpack
from registry.core.bundle import Attachment, ReleaseBundle, files_in
from registry.core.codes import BAD_REASON, DAMAGED_CONTENT, GUARDED_ALIAS
from registry.core.documents import Document
from registry.core.files import disk_errors, locked, remove_parts, replacing
from registry.core.protocol import (
    AliasMove,
    Collected,
    PushRequest,
    Ref,
    Removed,
    Resolved,
    check_alias,
    check_name,
    check_tag,
)
from registry.local import alias_policy, changes
from registry.local.blobs import Staged
from registry.local.garbage import collect
from registry.local.index import SUBJECT, Entry, Index
from registry.local.reader import LocalReader

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}\n'
COLLECT_WAITS_SECONDS = 60.0


@dataclass(frozen=True)
class _Staged:
    """A release whose files are in `draft`; `config` and `manifest` aren't written yet."""

    draft: Path
    files: tuple[Staged, ...]
    config: bytes
    manifest: bytes
    verdict: str


@dataclass(frozen=True)
class LocalRegistry(LocalReader):
    """Satisfies `registry.core.protocol.Registry`. The first push creates the folder."""

    def push(self, folder: Path, request: PushRequest, *, annotations: Mapping[str, str]) -> Published:
        """See `Registry.push`. With `request.consume`, files are hard-linked where possible, and nothing is copied."""
        with disk_errors(folder):
            paths = files_in(folder)
            needed = sum((folder / path).stat().st_size for path in paths)
        with self._receiving(request, needed) as draft:
            staged = self._blobs.stage(folder, paths, draft, consume=request.consume)
            records = tuple(item.record for item in staged)
            config = modelpack.config(records, annotations)
            manifest = modelpack.manifest(records, config, annotations)
            verdict = annotations.get(modelpack.VERDICT, "")
            return self._publish(request, _Staged(draft, staged, config, manifest, verdict))

    def put(self, bundle: ReleaseBundle, request: PushRequest) -> Published:
        """See `Registry.put`. Checks each file against its digest while copying; existing blobs aren't read."""
        verdict = bundle.contents.annotations.get(modelpack.VERDICT, "")
        with self._receiving(request, bundle.size_bytes) as draft:
            files = [record for record in bundle.contents.files if not self._blobs.is_intact(record)]
            sources = [(record.path, bundle.source(record)) for record in files]
            staged = self._blobs.stage_files(sources, draft, consume=request.consume)
            for item, record in zip(staged, files, strict=True):
                if item.record != record:
                    raise RegistryError(
                        DAMAGED_CONTENT,
                        f"{record.path} is damaged: the content of {bundle.source(record)} is not"
                        f" sha256:{record.sha256}",
                        hint="Publish the release again to the registry that it comes from: that repairs it.",
                    )
            published = self._publish(request, _Staged(draft, staged, bundle.config, bundle.manifest, verdict))
        with disk_errors(self.root):
            entry = self._index().find(Ref.parse(published.reference))
            by = changes.Author(request.actor, request.note, verdict)
            for attached in bundle.attached:
                self._attach(entry, attached, attached.media_type, by)
        return published

    @contextlib.contextmanager
    def _receiving(self, request: PushRequest, size_bytes: int) -> Iterator[Path]:
        """A folder for incoming files. Nothing is collected during the block."""
        check_name(request.name)
        if request.version is not None:
            changes.check_version(request.version)
        if request.alias is not None:
            check_alias(request.alias)
            self._check_unguarded(request.alias)
        with disk_errors(self.root, size_bytes):
            self._prepare()
            with locked(self.root / ".content.lock", shared=True), self._blobs.draft() as draft:
                yield draft

    def _publish(self, request: PushRequest, staged: _Staged) -> Published:
        """Keep the staged files and add the version to the index."""
        digest = modelpack.digest_of(staged.manifest)
        parts = (
            *staged.files,
            self._blobs.stage_bytes(staged.config, "config", staged.draft),
            self._blobs.stage_bytes(staged.manifest, "manifest", staged.draft),
        )
        with self._changing() as index:
            change = changes.publish(index, request, digest, len(staged.manifest), staged.verdict)
            with self._committing(change):
                self._blobs.keep(parts)
        return Published(
            reference=f"{request.name}:{change.entry.version}",
            version=change.entry.version,
            digest=digest,
            alias=request.alias,
            location=str(self.root),
            already_there=change.there,
        )

    def alias(self, move: AliasMove) -> Resolved:
        """See `Registry.alias`."""
        check_alias(move.alias)
        if move.kind == "alias":
            self._check_unguarded(move.alias)
        with disk_errors(self.root):
            # Before anything is written: a mistyped name must not create a registry.
            entry = self._index().find(Ref(check_name(move.name), check_tag(move.version)))
            name = f"{move.name}:{move.version}"
            verdict = self._contents(name, entry.digest).annotations.get(modelpack.VERDICT, "")
            with self._changing() as index:
                change = changes.move(index, move, verdict)
                with self._committing(change):
                    pass
                return self._resolved(change.index, change.entry)

    def attach(
        self, ref: str, blob: bytes, *, media_type: str, annotations: Mapping[str, str], by: changes.Author
    ) -> str:
        """Attach a blob to a release as an OCI referrer, and return the digest of the attaching manifest.

        The release keeps its digest. The attachment stays as long as the index names it.
        """
        with disk_errors(self.root):
            entry = self._index().find(Ref.parse(ref))
            name = f"{entry.name}:{entry.version}"
            verdict = self._contents(name, entry.digest).annotations.get(modelpack.VERDICT, "")
            subject: Document = {"mediaType": modelpack.MANIFEST_TYPE, "digest": entry.digest, "size": entry.size_bytes}
            manifest = modelpack.referrer(subject, blob, media_type, annotations)
            blobs = {modelpack.digest_of(data): data for data in (blob, modelpack.EMPTY)}
            self._attach(entry, Attachment(manifest, blobs), media_type, replace(by, verdict=verdict))
        return modelpack.digest_of(manifest)

    def _attach(self, entry: Entry, attached: Attachment, media_type: str, by: changes.Author) -> None:
        """Store an attachment of a version byte for byte."""
        descriptor: Document = {
            "mediaType": modelpack.MANIFEST_TYPE,
            "artifactType": media_type,
            "digest": modelpack.digest_of(attached.manifest),
            "size": len(attached.manifest),
            "annotations": {SUBJECT: entry.digest},
        }
        with locked(self.root / ".content.lock", shared=True), self._blobs.draft() as draft:
            data = enumerate((attached.manifest, *attached.blobs.values()))
            parts = tuple(self._blobs.stage_bytes(content, str(number), draft) for number, content in data)
            with self._changing() as index:
                change = changes.attach(index, entry, descriptor, by)
                with self._committing(change):
                    self._blobs.keep(parts)

    def collect(self, *, dry_run: bool) -> Collected:
        """See `Registry.collect`. Raises RegistryError if pushes run for longer than a minute."""
        with disk_errors(self.root):
            if not self.root.exists():
                return Collected(blobs=(), temporary=(), bytes_freed=0, dry_run=dry_run)
            self._prepare()
            content, index_lock = self.root / ".content.lock", self.root / ".index.lock"
            with locked(content, wait_seconds=COLLECT_WAITS_SECONDS), locked(index_lock):
                return collect(self._index(), self._blobs, dry_run=dry_run)

    def remove(self, ref: Ref, *, drop_aliases: bool, actor: str, note: str) -> Removed:
        """See `Registry.remove`. An alias that the policy guards is never removed with its version."""
        if not note.strip():
            raise RegistryError(BAD_REASON, f"removing {ref} needs a reason", hint="Pass --why TEXT.")
        with disk_errors(self.root):
            # Before anything is written: a mistyped name must not create a registry.
            self._index().find(ref)
            with self._changing() as index:
                change = changes.remove(index, ref, changes.Author(actor, note), drop_aliases=drop_aliases)
                for alias in index.aliases_of(change.entry):
                    self._check_unguarded(alias)
                with self._committing(change):
                    pass
                return change.index.removed[-1]

    def _check_unguarded(self, alias: str) -> None:
        guard = alias_policy.of_registry(self.root)
        if guard is not None and alias in guard.aliases:
            raise RegistryError(
                GUARDED_ALIAS,
                f"the alias {alias!r} is guarded by {self.root / alias_policy.FILE}",
                hint=f"Publish without this alias, then move it with `qpack promote REF {alias}`.",
            )

    def _prepare(self) -> None:
        self._index()
        self._blobs.folder.mkdir(parents=True, exist_ok=True)
        self._blobs.ingest.mkdir(exist_ok=True)
        if (self.root / "index.json").exists() and (self.root / "oci-layout").exists():
            return
        with locked(self.root / ".index.lock"):
            for name, data in (("oci-layout", _LAYOUT), ("index.json", Index().to_json())):
                if not (self.root / name).exists():
                    with replacing(self.root / name, data):
                        pass

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Index]:
        """The index, locked. First adds the line to the history that a killed process didn't write."""
        with locked(self.root / ".index.lock"):
            remove_parts(self.root)
            index = self._index()
            if index.event is not None:
                self._journal.append(index.event)
            yield index

    @contextlib.contextmanager
    def _committing(self, change: changes.Change) -> Iterator[None]:
        """Write the new index after the block, which writes what the index refers to."""
        if change.event is None:
            yield
            return
        with replacing(self.root / "index.json", change.index.to_json()):
            yield
        # The change is done. The index holds the event until it is in the history.
        with contextlib.suppress(OSError):
            self._journal.append(change.event)
