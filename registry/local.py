"""The local registry: one folder, an OCI image layout (https://github.com/opencontainers/image-spec/blob/main/image-layout.md).

    ROOT/oci-layout, ROOT/index.json     as the specification says; index.json changes in one rename
    ROOT/blobs/sha256/HEX                files, configs and manifests, shared between versions
    ROOT/history.jsonl                   every change, one JSON object a line; only ever appended to
    ROOT/ingest/                         what running pushes are bringing in
    ROOT/.content.lock                   flock(2): pushes share it, `collect` owns it
    ROOT/.index.lock                     flock(2): owned while index.json changes

Readers take no lock, so a registry on a read-only disk can be read. A version is there when index.json names it.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qpack.errors import RegistryError
from qpack.files import in_threads
from qpack.results import FileRecord, Published
from registry import changes, modelpack, policy
from registry.blobs import Blobs, Staged
from registry.files import appearing, disk_errors, locked, replacing
from registry.garbage import marked_by, size_of
from registry.index import Entry, Index
from registry.journal import Journal
from registry.packed import Attached, Packed, files_in
from registry.registry import Collected, Event, Move, Ref, Resolved, check_alias, check_name, check_tag, did_you_mean

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}\n'
COLLECT_WAITS_SECONDS = 60.0


@dataclass(frozen=True)
class LocalRegistry:
    """Satisfies `registry.registry.Registry`. The folder is made by the first push."""

    root: Path

    def push(
        self,
        folder: Path,
        name: str,
        version: str | None,
        alias: str | None,
        *,
        annotations: Mapping[str, str],
        actor: str,
        note: str = "",
        consume: bool = False,
    ) -> Published:
        """See `Registry.push`. `consume` hard-links the files where it can, so that nothing is copied."""
        with disk_errors(folder):
            paths = files_in(folder)
            needed = sum((folder / path).stat().st_size for path in paths)
        with self._bringing_in(name, version, alias, needed) as draft:
            staged = self._blobs.stage(folder, paths, draft, consume=consume)
            records = tuple(item.record for item in staged)
            config = modelpack.config(records, annotations)
            manifest = modelpack.manifest(records, config, annotations)
            by = changes.Author(actor, note, annotations.get(modelpack.VERDICT, ""))
            return self._publish(draft, staged, config, manifest, name, version, alias, by)

    def put(
        self,
        packed: Packed,
        name: str,
        version: str | None,
        alias: str | None,
        *,
        actor: str,
        note: str = "",
        consume: bool = False,
    ) -> Published:
        """See `Registry.put`. Every file is checked against its digest while it is copied; what is here isn't read."""
        with self._bringing_in(name, version, alias, packed.size_bytes) as draft:
            files = [record for record in packed.contents.files if not self._blobs.sound(record)]
            staged = self._blobs.stage_files([(r.path, packed.source(r)) for r in files], draft, consume=consume)
            for item, record in zip(staged, files, strict=True):
                if item.record != record:
                    raise RegistryError(
                        f"{record.path} is damaged: the content of {packed.source(record)} is not"
                        f" sha256:{record.sha256}",
                        hint="Publish the release to the registry that it comes from again: that repairs it.",
                    )
            by = changes.Author(actor, note, packed.contents.annotations.get(modelpack.VERDICT, ""))
            published = self._publish(draft, staged, packed.config, packed.manifest, name, version, alias, by)
        with disk_errors(self.root):
            entry = self._index().find(Ref.parse(published.reference))
            for attached in packed.attached:
                self._attach(entry, attached, attached.media_type, by)
        return published

    @contextlib.contextmanager
    def _bringing_in(self, name: str, version: str | None, alias: str | None, size_bytes: int) -> Iterator[Path]:
        """A folder for what is on its way in, while nothing is collected."""
        check_name(name)
        if version is not None:
            changes.check_version(version)
        if alias is not None:
            check_alias(alias)
            self._check_unguarded(alias)
        with disk_errors(self.root, size_bytes):
            self._prepare()
            with locked(self.root / ".content.lock", shared=True), self._blobs.draft() as draft:
                yield draft

    def _publish(
        self,
        draft: Path,
        staged: tuple[Staged, ...],
        config: bytes,
        manifest: bytes,
        name: str,
        version: str | None,
        alias: str | None,
        by: changes.Author,
    ) -> Published:
        """Keep what is staged, and name it, in one step."""
        digest = modelpack.digest_of(manifest)
        parts = (
            *staged,
            self._blobs.stage_bytes(config, "config", draft),
            self._blobs.stage_bytes(manifest, "manifest", draft),
        )
        with self._changing() as index:
            change = changes.publish(index, name, version, alias, digest, len(manifest), by)
            with self._committing(change):
                self._blobs.keep(parts)
        return Published(
            reference=f"{name}:{change.entry.version}",
            version=change.entry.version,
            digest=digest,
            alias=alias,
            location=str(self.root),
            already_there=change.there,
        )

    def resolve(self, ref: str) -> Resolved:
        """See `Registry.resolve`."""
        with disk_errors(self.root):
            index = self._index()
            return self._resolved(index, index.find(Ref.parse(ref)))

    def list(self, name: str | None = None) -> tuple[Resolved, ...]:
        """See `Registry.list`."""
        with disk_errors(self.root):
            index = self._index()
            if name is not None and not index.of(check_name(name)):
                index.find(Ref(name))
            entries = sorted(index.entries, key=lambda entry: entry.name)
            return tuple(self._resolved(index, entry) for entry in entries if name in (None, entry.name))

    def open(self, ref: str, path: str) -> Path:
        """See `Registry.open`. The path is that of the blob: its name says nothing about the kind of file."""
        with disk_errors(self.root):
            return self._blobs.verified(self._digest(ref, path), f"{path} of {ref}")

    def read(self, ref: str, path: str) -> bytes:
        """See `Registry.read`."""
        with disk_errors(self.root):
            return self._blobs.read(self._digest(ref, path), f"{path} of {ref}")

    def packed(self, ref: str) -> Packed:
        """See `Registry.packed`. The files are the blobs themselves, checked by whoever reads them."""
        with disk_errors(self.root):
            index = self._index()
            entry = index.find(Ref.parse(ref))
            where = f"the manifest of {entry.name}:{entry.version}"
            manifest = self._blobs.read(entry.digest, where)
            contents = modelpack.read_manifest(manifest, where)
            config = self._blobs.read(contents.config_digest, f"the config of {entry.name}:{entry.version}")
            attached = []
            for item in index.others:
                data = self._blobs.read(str(item.get("digest")), "what is attached", modelpack.LARGEST_MANIFEST)
                if needed := modelpack.attached_to(data, entry.digest):
                    blobs = (*needed, modelpack.digest_of(modelpack.EMPTY))
                    attached.append(Attached(data, {d: self._blobs.read(d, "an attached blob") for d in blobs}))
        digests = (f"sha256:{record.sha256}" for record in contents.files)
        return Packed(manifest, config, contents, {d: self._blobs.path(d) for d in digests}, tuple(attached))

    def pull(self, ref: str, dest: Path) -> Resolved:
        """See `Registry.pull`. The files are made in a folder beside `dest`, which is renamed when all are verified."""
        resolved = self.resolve(ref)
        with disk_errors(self.root):
            contents = self._contents(resolved.name, resolved.version, resolved.digest)
            self._blobs.read(contents.config_digest, f"the config of {resolved.name}:{resolved.version}")
        files = contents.files
        with appearing(dest, files) as draft:
            in_threads(lambda record: self._blobs.copy_out(record, draft), files)
        return resolved

    def alias(
        self,
        name: str,
        alias: str,
        version: str,
        expected: str | None = None,
        *,
        actor: str,
        note: str = "",
        what: Move = "alias",
    ) -> Resolved:
        """See `Registry.alias`. `what` is the kind of move; a plain one leaves alone what the policy guards."""
        check_alias(alias)
        if what == "alias":
            self._check_unguarded(alias)
        with disk_errors(self.root):
            # Before anything is written: a mistyped name must not make a registry.
            entry = self._index().find(Ref(check_name(name), check_tag(version)))
            verdict = self._contents(name, version, entry.digest).annotations.get(modelpack.VERDICT, "")
            with self._changing() as index:
                by = changes.Author(actor, note, verdict)
                change = changes.move(index, name, alias, version, expected, by, what)
                with self._committing(change):
                    pass
                return self._resolved(change.index, change.entry)

    def attach(
        self, ref: str, blob: bytes, *, media_type: str, annotations: Mapping[str, str], actor: str, note: str = ""
    ) -> str:
        """Attach a blob to a release as an OCI referrer, and return the digest of the manifest that does so.

        The release keeps its digest. Whatever is attached stays for as long as the index names it.
        """
        with disk_errors(self.root):
            entry = self._index().find(Ref.parse(ref))
            verdict = self._contents(entry.name, entry.version, entry.digest).annotations.get(modelpack.VERDICT, "")
            subject = {"mediaType": modelpack.MANIFEST_TYPE, "digest": entry.digest, "size": entry.size_bytes}
            manifest = modelpack.referrer(subject, blob, media_type, annotations)
            blobs = {modelpack.digest_of(data): data for data in (blob, modelpack.EMPTY)}
            self._attach(entry, Attached(manifest, blobs), media_type, changes.Author(actor, note, verdict))
        return modelpack.digest_of(manifest)

    def _attach(self, entry: Entry, attached: Attached, media_type: str, by: changes.Author) -> None:
        """Keep a manifest about a version, and its blobs, byte for byte."""
        descriptor = {
            "mediaType": modelpack.MANIFEST_TYPE,
            "artifactType": media_type,
            "digest": modelpack.digest_of(attached.manifest),
            "size": len(attached.manifest),
        }
        with locked(self.root / ".content.lock", shared=True), self._blobs.draft() as draft:
            data = enumerate((attached.manifest, *attached.blobs.values()))
            parts = tuple(self._blobs.stage_bytes(content, str(number), draft) for number, content in data)
            with self._changing() as index:
                change = changes.attach(index, entry, descriptor, by)
                with self._committing(change):
                    self._blobs.keep(parts)

    def attached(self, ref: str, media_type: str) -> tuple[bytes, ...]:
        """The blobs of that type that are attached to a release, in the order in which they were."""
        with disk_errors(self.root):
            index = self._index()
            subject = index.find(Ref.parse(ref)).digest
            found: list[bytes] = []
            for item in index.others:
                if item.get("artifactType") == media_type:
                    manifest = self._blobs.read(str(item.get("digest")), f"what is attached to {ref}")
                    blobs = modelpack.attached_to(manifest, subject)
                    found += (self._blobs.read(digest, f"what is attached to {ref}") for digest in blobs)
            return tuple(found)

    def history(self, name: str | None = None) -> tuple[Event, ...]:
        """See `Registry.history`."""
        with disk_errors(self.root):
            events = self._journal.read(self._index().event)
        return tuple(event for event in events if name in (None, event.name))

    def collect(self, *, dry_run: bool) -> Collected:
        """See `Registry.collect`. Raises RegistryError when pushes run for longer than a minute."""
        with disk_errors(self.root):
            if not self.root.exists():
                return Collected(blobs=(), temporary=(), bytes_freed=0, dry_run=dry_run)
            self._prepare()
            content, index_lock = self.root / ".content.lock", self.root / ".index.lock"
            with locked(content, wait_seconds=COLLECT_WAITS_SECONDS), locked(index_lock):
                marked = marked_by(self._index(), self._blobs)
                # No push runs, so whatever is in ingest/ was left by one that died. Dot files are of atomic writes.
                rubbish = sorted([*self._blobs.ingest.glob("*"), *self.root.glob(".*.part")])
                swept = sorted(path for path in self._blobs.folder.iterdir() if path.name not in marked)
                freed = sum(size_of(path) for path in (*swept, *rubbish))
                if not dry_run:
                    for path in (*swept, *rubbish):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return Collected(
            blobs=tuple(f"sha256:{path.name}" for path in swept),
            temporary=tuple(str(path.relative_to(self.root)) for path in rubbish),
            bytes_freed=freed,
            dry_run=dry_run,
        )

    def contents(self, ref: str) -> modelpack.Contents:
        """What the release's manifest says, after its digest was checked."""
        with disk_errors(self.root):
            entry = self._index().find(Ref.parse(ref))
            return self._contents(entry.name, entry.version, entry.digest)

    def config(self, ref: str) -> bytes:
        """The release's config object, checked against its digest."""
        contents = self.contents(ref)
        with disk_errors(self.root):
            return self._blobs.read(contents.config_digest, f"the config of {ref}")

    def blob(self, digest: str) -> Path:
        """Where the blob `sha256:...` is, or would be. Nothing is checked."""
        return self._blobs.path(digest)

    def _check_unguarded(self, alias: str) -> None:
        guard = policy.of_registry(self.root)
        if guard is not None and alias in guard.aliases:
            raise RegistryError(
                f"the alias {alias!r} is guarded by {self.root / policy.FILE}",
                hint=f"`qpack promote REF {alias}` moves it; publish a release without it first.",
            )

    @property
    def _journal(self) -> Journal:
        return Journal(self.root / "history.jsonl")

    @property
    def _blobs(self) -> Blobs:
        return Blobs(self.root)

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

    def _index(self) -> Index:
        path = self.root / "index.json"
        try:
            return Index.from_json(path.read_bytes(), str(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            if self._journal.path.exists():
                # To go on with an empty index would give versions out twice, and let `collect` remove everything.
                raise RegistryError(
                    f"{path} is missing, but {self._journal.path.name} says that releases were published here",
                    hint="Put a copy of the file back from a backup; the blobs beside it are untouched.",
                ) from error
            return Index()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Index]:
        """The index, owned by this process. First the history gets the line that a killed process didn't write."""
        with locked(self.root / ".index.lock"):
            index = self._index()
            if index.event is not None:
                self._journal.append(index.event)
            yield index

    @contextlib.contextmanager
    def _committing(self, change: changes.Change) -> Iterator[None]:
        """Make the change after the block: the new index needs what the block does."""
        if change.event is None:
            yield
            return
        with replacing(self.root / "index.json", change.index.to_json()):
            yield
        # From here on the change is made. The index carries the event until the next change has seen to the history.
        with contextlib.suppress(OSError):
            self._journal.append(change.event)

    def _contents(self, name: str, version: str, digest: str) -> modelpack.Contents:
        where = f"the manifest of {name}:{version}"
        return modelpack.read_manifest(self._blobs.read(digest, where, modelpack.LARGEST_MANIFEST), where)

    def _resolved(self, index: Index, entry: Entry) -> Resolved:
        return Resolved(
            name=entry.name,
            version=entry.version,
            digest=entry.digest,
            aliases=index.aliases_of(entry),
            annotations=self._contents(entry.name, entry.version, entry.digest).annotations,
            created=entry.created,
        )

    def _digest(self, ref: str, path: str) -> str:
        entry = self._index().find(Ref.parse(ref))
        files = {record.path: record for record in self._contents(entry.name, entry.version, entry.digest).files}
        record: FileRecord | None = files.get(path)
        if record is None:
            hint = did_you_mean(path, files) or f"It has: {', '.join(sorted(files)[:12])}."
            raise RegistryError(f"{entry.name}:{entry.version} has no file {path!r}", hint=hint)
        return f"sha256:{record.sha256}"
