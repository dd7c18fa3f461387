"""Reads of the local registry. Takes no lock and writes nothing, so it works on a read-only disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qpack.core.errors import RegistryError
from qpack.core.hashing import in_threads
from qpack.core.problems import NO_SUCH_FILE
from qpack.core.records import FileRecord
from registry.core import modelpack
from registry.core.bundle import Attachment, ReleaseBundle
from registry.core.codes import MISSING_CONTENT
from registry.core.files import bounded, disk_errors
from registry.core.journal import Journal
from registry.core.protocol import Event, Named, Ref, Resolved, check_name, did_you_mean
from registry.core.transfers import appearing
from registry.local.blobs import Blobs
from registry.local.index import LARGEST, SUBJECT, Entry, Index, notes_of


@dataclass(frozen=True)
class LocalReader:
    """Reads the registry in the folder `root`.

    A reference as text is looked up in the index on every call. A Resolved is read by its digest, whatever the index
    says by then: use it to read one release several times.
    """

    root: Path

    def resolve(self, ref: Named) -> Resolved:
        """See `Registry.resolve`."""
        if isinstance(ref, Resolved):
            return ref
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
            return tuple(self._listed(index, entry) for entry in entries if name in (None, entry.name))

    def aliases(self, name: str) -> dict[str, str]:
        """Versions by alias; empty for an unknown name. Reads no manifest."""
        with disk_errors(self.root):
            return self._index().aliases_at(name)

    def open(self, ref: Named, path: str) -> Path:
        """See `Registry.open`. The path is that of the blob, without the file's suffix."""
        with disk_errors(self.root):
            return self._blobs.verified(self._digest(ref, path), f"{path} of {_said(ref)}")

    def read(self, ref: Named, path: str) -> bytes:
        """See `Registry.read`."""
        with disk_errors(self.root):
            return self._blobs.read(self._digest(ref, path), f"{path} of {_said(ref)}")

    def bundle(self, ref: Named) -> ReleaseBundle:
        """See `Registry.bundle`. The files are the blobs themselves; their reader checks them."""
        with disk_errors(self.root):
            index = self._index()
            name, digest = self._found(ref, index)
            manifest = self._blobs.read(digest, f"the manifest of {name}", modelpack.LARGEST_MANIFEST)
            contents = modelpack.read_manifest(manifest, f"the manifest of {name}")
            config = self._config(name, contents)
            attached = []
            for data in self._about(index, digest, f"what is attached to {name}"):
                blobs = (*modelpack.attached_to(data, digest), modelpack.digest_of(modelpack.EMPTY))
                attached.append(Attachment(data, {d: self._blobs.read(d, "an attached blob") for d in blobs}))
        digests = (f"sha256:{record.sha256}" for record in contents.files)
        return ReleaseBundle(manifest, config, contents, {d: self._blobs.path(d) for d in digests}, tuple(attached))

    def pull(self, ref: Named, dest: Path) -> Resolved:
        """See `Registry.pull`. Files are copied into a folder beside `dest`, which is renamed once all are verified."""
        resolved = self.resolve(ref)
        contents = self.contents(resolved)
        with disk_errors(self.root):
            self._config(resolved.exact, contents)
        with appearing(dest, resolved.digest, contents.files) as draft:
            in_threads(lambda record: self._blobs.copy_out(record, draft), contents.files)
        return resolved

    def attached(self, ref: Named, media_type: str) -> tuple[bytes, ...]:
        """The blobs of that type that are attached to a release, in the order of attachment."""
        what = f"what is attached to {_said(ref)}"
        with disk_errors(self.root):
            index = self._index()
            _, subject = self._found(ref, index)
            found: list[bytes] = []
            for manifest in self._about(index, subject, what, media_type):
                blobs = modelpack.attached_to(manifest, subject)
                found += (self._blobs.read(digest, what, modelpack.LARGEST_MANIFEST) for digest in blobs)
            return tuple(found)

    def history(self, name: str | None = None) -> tuple[Event, ...]:
        """See `Registry.history`."""
        with disk_errors(self.root):
            events = self._journal.read(self._index().event)
        return tuple(event for event in events if name in (None, event.name))

    def contents(self, ref: Named) -> modelpack.Contents:
        """The contents of the release's manifest, after its digest was checked."""
        with disk_errors(self.root):
            name, digest = self._found(ref)
            return self._contents(name, digest)

    def config(self, ref: Named) -> bytes:
        """The release's config object, checked against its digest."""
        contents = self.contents(ref)
        with disk_errors(self.root):
            return self._config(_said(ref), contents)

    def blob(self, digest: str) -> Path:
        """The path of the blob `sha256:...`, which may not exist. Checks nothing."""
        return self._blobs.path(digest)

    @property
    def _journal(self) -> Journal:
        return Journal(self.root / "history.jsonl")

    @property
    def _blobs(self) -> Blobs:
        return Blobs(self.root)

    def _index(self) -> Index:
        path = self.root / "index.json"
        try:
            return Index.from_json(bounded(path, LARGEST), str(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            if self._journal.path.exists():
                # With an empty index, versions would be reused, and `collect` would remove everything.
                raise RegistryError(
                    MISSING_CONTENT,
                    f"{path} is missing, but {self._journal.path.name} lists published releases",
                    hint="Restore the file from a backup; the blobs beside it are intact.",
                ) from error
            return Index()

    def _found(self, ref: Named, index: Index | None = None) -> tuple[str, str]:
        """The name and digest of a release."""
        if isinstance(ref, Resolved):
            return f"{ref.name}:{ref.version}", ref.digest
        entry = (index or self._index()).find(Ref.parse(ref))
        return f"{entry.name}:{entry.version}", entry.digest

    def _contents(self, name: str, digest: str) -> modelpack.Contents:
        where = f"the manifest of {name}"
        return modelpack.read_manifest(self._blobs.read(digest, where, modelpack.LARGEST_MANIFEST), where)

    def _config(self, name: str, contents: modelpack.Contents) -> bytes:
        return self._blobs.read(contents.config_digest, f"the config of {name}", modelpack.LARGEST_MANIFEST)

    def _about(self, index: Index, digest: str, what: str, media_type: str | None = None) -> Iterator[bytes]:
        """The manifests of attachments to the release with that digest."""
        for item in index.others:
            kind, about = item.get("artifactType"), notes_of(item).get(SUBJECT, digest)
            if about == digest and kind is not None and media_type in (None, kind):
                data = self._blobs.read(str(item.get("digest")), what, modelpack.LARGEST_MANIFEST)
                if modelpack.attached_to(data, digest):
                    yield data

    def _resolved(self, index: Index, entry: Entry) -> Resolved:
        return Resolved(
            name=entry.name,
            version=entry.version,
            digest=entry.digest,
            aliases=index.aliases_of(entry),
            annotations=self._contents(f"{entry.name}:{entry.version}", entry.digest).annotations,
            created=entry.created,
        )

    def _listed(self, index: Index, entry: Entry) -> Resolved:
        try:
            with disk_errors(self.root):
                return self._resolved(index, entry)
        except RegistryError as error:
            return Resolved(
                name=entry.name,
                version=entry.version,
                digest=entry.digest,
                aliases=index.aliases_of(entry),
                annotations={},
                created=entry.created,
                unreadable=error.what,
            )

    def _digest(self, ref: Named, path: str) -> str:
        name, digest = self._found(ref)
        files = {record.path: record for record in self._contents(name, digest).files}
        record: FileRecord | None = files.get(path)
        if record is None:
            hint = did_you_mean(path, files) or f"It has: {', '.join(sorted(files)[:12])}."
            raise RegistryError(NO_SUCH_FILE, f"{name} has no file {path!r}", hint=hint)
        return f"sha256:{record.sha256}"


def _said(ref: Named) -> str:
    return ref if isinstance(ref, str) else f"{ref.name}:{ref.version}"
