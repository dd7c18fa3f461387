"""OCI registries: releases as ModelPack artifacts with raw layers; one repository per name, one tag per version or
alias.

The manifest is the same as in the local registry, byte for byte. A tag that starts with a digit, or with `v` and a
digit, is a version and written once. Any other tag is an alias and moves. The specification has no compare-and-swap for
tags (docs/decisions/0010): a tag is read right before and after it is written, and of two concurrent writers one can
overwrite the other. To be certain, use the digest.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from qpack.core.errors import RegistryError
from qpack.core.problems import NO_SUCH_FILE
from qpack.core.records import FileRecord, Published
from registry.core import modelpack
from registry.core.bundle import Attachment, Progress, ReleaseBundle, nothing, pack
from registry.core.codes import (
    DIGEST_DIFFERS,
    NO_SUCH_RELEASE,
    NO_SUCH_VERSION,
    VERSION_EXISTS,
)
from registry.core.protocol import (
    DEFAULT_ALIAS,
    REMOTE_VERSION,
    AliasMove,
    Check,
    Named,
    PushRequest,
    Ref,
    Removed,
    Resolved,
    check_name,
    did_you_mean,
)
from registry.core.transfers import AT_ONCE, Counter, arriving, read_whole, receive
from registry.local import changes
from registry.oci import image, tags
from registry.oci.blobs import Blobs, Sessions
from registry.oci.distribution import Repository, catalog
from registry.oci.http import MOST_BYTES, Http, Unreachable

_MOST_ATTACHED = 100
_MOST_READ = 256 * 2**20
# The fallback tags of referrers.
_REFERRERS = re.compile(r"sha256-[0-9a-f]{64}")


@dataclass(frozen=True)
class ImagePublished:
    """Where a model's image is: `repository` with the host, its tag and its digest."""

    repository: str
    tag: str
    digest: str


@dataclass(frozen=True)
class OciRegistry:
    """Satisfies `registry.core.protocol.Remote`. With the prefix `org` the name `m` is the repository `org/m`."""

    http: Http
    prefix: str = ""
    sessions: Sessions = field(default_factory=lambda: Sessions(None))
    mount_from: tuple[str, ...] = ()
    progress: Progress = nothing

    def close(self) -> None:
        """See `Remote.close`."""
        self.http.client.close()

    def push(self, folder: Path, request: PushRequest, *, annotations: Mapping[str, str]) -> Published:
        """See `Releases.push`. `actor` and `note` are dropped: tags have no history. `consume` has no effect."""
        tags.check(request.name, request.version, request.alias)
        return self.put(pack(folder, annotations), request)

    def put(self, bundle: ReleaseBundle, request: PushRequest) -> Published:
        """See `Releases.put`. The tag is written after everything that it needs."""
        name, version, alias = request.name, request.version, request.alias
        tags.check(name, version, alias)
        repository = self._repository(name)
        if version is not None:
            _same(repository, version, bundle.digest)
        self._send(repository, bundle)
        version, there = self._tag(repository, bundle, version)
        for attached in bundle.attached:
            self._attach(repository, attached)
        if alias is not None and repository.digest(alias) != bundle.digest:
            repository.put_manifest(alias, bundle.manifest)
        return Published(
            reference=f"{name}:{version}",
            version=version,
            digest=bundle.digest,
            alias=alias,
            location=f"oci://{self.http.host}/{repository.name}:{version}",
            already_there=there,
        )

    def put_image(self, bundle: ReleaseBundle, name: str, version: str) -> ImagePublished:
        """The model of a release as an OCI image beside it, at the tag `image-VERSION`; see `registry.oci.image`."""
        repository = self._repository(name)
        notes = {"org.qpack.digest": bundle.digest, "org.opencontainers.image.ref.name": f"{name}:{version}"}
        size = sum(r.size_bytes for group in image.layers(bundle.contents.files) for r in group)
        counter = Counter(size, "bytes sent", self.progress)
        blobs = Blobs(repository, self.sessions, self.mount_from)
        digest = image.push(blobs, bundle, image.tag_of(version), notes, counter)
        return ImagePublished(f"{self.http.host}/{repository.name}", image.tag_of(version), digest)

    def resolve(self, ref: Named) -> Resolved:
        """See `Releases.resolve`."""
        if isinstance(ref, Resolved):
            return ref
        parsed = Ref.parse(ref)
        return self._resolved(parsed, *self._found(parsed))

    def list(self, name: str | None = None) -> tuple[Resolved, ...]:
        """See `Releases.list`. Without a name, lists every repository below `prefix`, if the registry supports that.

        Versions are sorted by number: registries don't record when a tag was written.
        """
        names = self._names() if name is None else (check_name(name),)
        return tuple(found for one in names for found in self._versions(one, wanted=name is not None))

    def _versions(self, name: str, *, wanted: bool) -> Iterator[Resolved]:
        repository = self._repository(name)
        digests = _digests(repository, repository.tags())
        if wanted and not digests:
            raise self._unknown(Ref(name))
        for version, digest in digests.items():
            if not REMOTE_VERSION.fullmatch(version):
                continue
            annotations, why = dict[str, str](), ""
            try:
                manifest = repository.manifest(digest)
                if manifest is None:
                    continue  # deleted since
                annotations = modelpack.read_manifest(manifest, f"the manifest of {name}:{version}").annotations
            except Unreachable:
                raise
            except RegistryError as error:
                why = error.what
            found = tags.resolved(name, digest, annotations, digests)
            yield found.model_copy(update={"version": version, "unreadable": why})

    def read(self, ref: Named, path: str) -> bytes:
        """See `Releases.read`. Refuses files of more than 256 MiB."""
        parsed = _ref(ref)
        _, contents = self._found(parsed)
        files = {record.path: record for record in contents.files}
        if path not in files:
            hint = did_you_mean(path, files) or f"It has: {', '.join(sorted(files)[:12])}."
            raise RegistryError(NO_SUCH_FILE, f"{parsed} has no file {path!r}", hint=hint)
        digest = f"sha256:{files[path].sha256}"
        return self._small(self._repository(parsed.name), digest, f"{path} of {parsed}", _MOST_READ)

    def pull(self, ref: Named, dest: Path, check: Check = lambda _: None) -> Resolved:
        """See `Releases.pull`. After an interruption, the downloaded part stays beside `dest`, and the next pull
        resumes.
        """
        parsed = _ref(ref)
        manifest, contents = self._found(parsed)
        check(contents)
        repository = self._repository(parsed.name)
        resolved = ref if isinstance(ref, Resolved) else self._resolved(parsed, manifest, contents)
        with arriving(dest, resolved.digest, contents.files) as draft:
            self._receive(repository, contents.files, draft)
        return resolved

    def fetch_bundle(self, ref: Named, folder: Path) -> ReleaseBundle:
        """See `Remote.fetched`."""
        parsed = _ref(ref)
        manifest, contents = self._found(parsed)
        repository = self._repository(parsed.name)
        config = self._small(repository, contents.config_digest, f"the config of {parsed}", MOST_BYTES)
        self._receive(repository, contents.files, folder)
        sources = {f"sha256:{r.sha256}": folder / r.path for r in contents.files}
        attached = tuple(self._attached(repository, modelpack.digest_of(manifest)))
        return ReleaseBundle(manifest, config, contents, sources, attached)

    def alias(self, move: AliasMove) -> Resolved:
        """See `Releases.alias`. Compare and move are two requests: a move in between is overwritten."""
        name, alias, version = move.name, move.alias, move.version
        tags.check(name, version, alias)
        target = Ref(name, version)
        manifest, contents = self._found(target)
        repository = self._repository(name)
        digests = _digests(repository, repository.tags())
        before = tags.version_of(digests.get(alias), digests)
        move.check_expected(before)
        if before != version:
            repository.put_manifest(alias, manifest)
        return self._resolved(target, manifest, contents)

    def remove(self, ref: Ref, *, drop_aliases: bool, actor: str, note: str) -> Removed:  # noqa: ARG002
        """See `Releases.remove`. Deletes the manifest by digest, with all its tags, including ones that are written
        meanwhile. The reason isn't stored: a registry has no history.
        """
        repository = self._repository(ref.name)
        digests = _digests(repository, repository.tags())
        digest, aliases = tags.digest_to_remove(ref, digests)
        if digest is None:
            raise self._unknown(ref)
        if aliases and not drop_aliases:
            raise changes.pointed_at(str(ref), aliases)
        about = repository.referrers(digest)[:_MOST_ATTACHED]
        repository.delete(digest)
        for attached in about:
            with contextlib.suppress(RegistryError):
                repository.delete(attached)
        version = ref.tag or tags.version_of(digest, digests) or digest
        gone = {"name": ref.name, "version": version, "digest": digest}
        return Removed(**gone, when=changes.now(), why=note, dropped=aliases)

    def _attach(self, repository: Repository, attached: Attachment) -> None:
        blobs = Blobs(repository, self.sessions)
        for digest, content in attached.blobs.items():
            blobs.send_bytes(content, digest)
        repository.attach(attached.manifest)

    def _attached(self, repository: Repository, digest: str) -> Iterator[Attachment]:
        """The attachments of a release that a local registry can store."""
        for one in repository.referrers(digest)[:_MOST_ATTACHED]:
            data = repository.manifest(one)
            if data is not None and (needed := modelpack.attached_to(data, digest)):
                names = (*needed, modelpack.digest_of(modelpack.EMPTY))
                what = f"what is attached to {repository.name}"
                yield Attachment(data, {name: self._small(repository, name, what, MOST_BYTES) for name in names})

    def _repository(self, name: str) -> Repository:
        return Repository(self.http, f"{self.prefix}/{name}" if self.prefix else name)

    def _names(self) -> tuple[str, ...]:
        start = f"{self.prefix}/" if self.prefix else ""
        return tuple(name.removeprefix(start) for name in catalog(self.http) if name.startswith(start))

    def _send(self, repository: Repository, bundle: ReleaseBundle) -> None:
        blobs = Blobs(repository, self.sessions, self.mount_from)
        counter = Counter(bundle.size_bytes, "bytes sent", self.progress)
        by_content = {record.sha256: record for record in bundle.contents.files}

        def one(record: FileRecord) -> None:
            blobs.send(f"sha256:{record.sha256}", bundle.source(record), record.size_bytes, counter)

        counter.all(one, by_content.values())
        blobs.send_bytes(bundle.config, bundle.contents.config_digest)

    def _receive(self, repository: Repository, files: tuple[FileRecord, ...], folder: Path) -> None:
        blobs = Blobs(repository, self.sessions)
        counter = Counter(sum(record.size_bytes for record in files), "bytes received", self.progress)
        receive(folder, files, lambda r, offset: blobs.chunks(f"sha256:{r.sha256}", offset, r.path), counter)

    def _tag(self, repository: Repository, bundle: ReleaseBundle, version: str | None) -> tuple[str, bool]:
        """Tag the release with its version. Returns the version and whether it existed."""
        if version is not None:
            if _same(repository, version, bundle.digest):
                return version, True
            repository.put_manifest(version, bundle.manifest)
            # Another writer may have used the same tag meanwhile.
            _same(repository, version, bundle.digest)
            return version, False
        while True:
            digests = _digests(repository, filter(REMOTE_VERSION.fullmatch, repository.tags()))
            if there := tags.version_of(bundle.digest, digests):
                return there, True
            version = str(1 + max((int(tag) for tag in digests if tag.isdecimal()), default=0))
            repository.put_manifest(version, bundle.manifest)
            if repository.digest(version) == bundle.digest:
                return version, False

    def _small(self, repository: Repository, digest: str, what: str, limit: int) -> bytes:
        """A blob's content, checked. Raises RegistryError if it is larger than `limit`."""
        with Blobs(repository, self.sessions).chunks(digest, 0, what) as chunks:
            return read_whole(chunks, what, digest, limit)

    def _found(self, ref: Ref) -> tuple[bytes, modelpack.Contents]:
        """The manifest at `ref`. A tag and a digest have to agree."""
        repository = self._repository(ref.name)
        tag = ref.tag or (None if ref.digest else DEFAULT_ALIAS)
        manifest = repository.manifest(tag or str(ref.digest))
        if manifest is None:
            raise self._unknown(ref)
        if ref.digest not in (None, modelpack.digest_of(manifest)):
            raise RegistryError(
                DIGEST_DIFFERS,
                f"{ref.name}:{tag} is {modelpack.digest_of(manifest)}, not {ref.digest}",
                hint="Leave the digest out to take what the tag names now, or leave the tag out to take the digest.",
            )
        return manifest, modelpack.read_manifest(manifest, f"the manifest of {self.http.host}/{repository.name}")

    def _resolved(self, ref: Ref, manifest: bytes, contents: modelpack.Contents) -> Resolved:
        repository = self._repository(ref.name)
        digests = _digests(repository, repository.tags())
        return tags.resolved(ref.name, modelpack.digest_of(manifest), contents.annotations, digests)

    def _unknown(self, ref: Ref) -> RegistryError:
        repository = self._repository(ref.name)
        digests = _digests(repository, repository.tags())
        if digests:
            versions = [f"{tag} ({digest[:19]}...)" if ref.digest else tag for tag, digest in digests.items()]
            wanted = ref.tag or ref.digest or DEFAULT_ALIAS
            hint = f"{did_you_mean(wanted, digests)} Available: {', '.join(versions[:8])}."
            return RegistryError(
                NO_SUCH_VERSION, f"{self.http.host}/{repository.name} has no {wanted!r}", hint=hint.strip()
            )
        try:
            names = self._names()
        except RegistryError:
            names = ()
        hint = did_you_mean(ref.name, names) or (f"Available: {', '.join(names[:8])}." if names else "")
        what = f"there is no release named {ref.name!r} at {self.http.host}"
        return RegistryError(NO_SUCH_RELEASE, what, hint=hint or "Nothing was published here yet.")


def _ref(ref: Named) -> Ref:
    """The reference to request. A Resolved is requested by its digest, which can't move."""
    return Ref(ref.name, None, ref.digest) if isinstance(ref, Resolved) else Ref.parse(ref)


def _same(repository: Repository, version: str, digest: str) -> bool:
    """Whether the version exists with this content. Raises RegistryError if it has other content."""
    found = repository.digest(version)
    if found not in (None, digest):
        raise RegistryError(
            VERSION_EXISTS,
            f"{repository.http.host}/{repository.name}:{version} exists with other content ({found}), and versions"
            " never change",
            hint="Publish as another version.",
        )
    return found is not None


def _digests(repository: Repository, known: Iterable[str]) -> dict[str, str]:
    """Tag -> digest, versions first and in order, without tags of referrers."""
    wanted = sorted((tag for tag in known if not _REFERRERS.fullmatch(tag)), key=tags.order)
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        found = zip(wanted, pool.map(repository.digest, wanted), strict=True)
        return {tag: digest for tag, digest in found if digest is not None}
