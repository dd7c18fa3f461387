"""MLflow: a release is a run with its evidence and files, and a version of a registered model.

The model version is made last, with all its tags in one request, so it appears whole or not at all; a killed push
leaves a run without one. MLflow numbers versions itself: the release's own version is a tag, `qpack.version`, and its
digest another. MLflow has no compare-and-swap: of two writers of one version the one with the lower number stays, and
the other takes its own back. Names can't contain a slash there, so `org/m` is `org~m`; MLflow keeps `latest` for
itself, so that alias is `current`.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpack.core.errors import RegistryError
from qpack.core.hashing import open_regular, sha256
from qpack.core.problems import NO_SUCH_FILE, Code
from qpack.core.records import FileRecord, Published
from registry.core import documents, modelpack
from registry.core.bundle import Attachment, Progress, ReleaseBundle, nothing, pack
from registry.core.codes import (
    DAMAGED_CONTENT,
    DIGEST_DIFFERS,
    INVALID_NAME,
    NO_SUCH_RELEASE,
    NO_SUCH_VERSION,
    REGISTRY_REFUSED,
    TOO_LARGE,
    VERSION_EXISTS,
    VERSION_NEEDED,
)
from registry.core.documents import Document, Json
from registry.core.protocol import (
    DEFAULT_ALIAS,
    AliasMove,
    Check,
    Named,
    PushRequest,
    Ref,
    Removed,
    Resolved,
    check_alias,
    check_name,
    check_tag,
    did_you_mean,
)
from registry.core.transfers import Counter, arriving, read_whole, receive
from registry.local import changes
from registry.mlflow import evidence
from registry.mlflow.client import Client, Refused
from registry.release import release_folder

_NO_ARTIFACTS = Code("no-artifacts", "An MLflow server doesn't store files itself.")

EXPERIMENT = "qpack"
_VERSION, _DIGEST, _ROOT = "qpack.version", "qpack.digest", "qpack.root"
_RELEASE, _MANIFEST, _CONFIG, _ATTACHED = "release", "oci/manifest.json", "oci/config.json", "attached"
_LATEST = "current"
_ALIAS = re.compile(r"[\w-]+", re.ASCII)
_RESERVED = re.compile(r"v\d+", re.IGNORECASE)
_ROOTS = re.compile(r"[\w./-]+", re.ASCII)
_MOST_READ = 256 * 2**20
_MOST_ATTACHED = 100
_BLOCK = 2**20

Pairs = list[Document]
"""MLflow's form of tags and parameters; the class below has a method called `list`."""


@dataclass(frozen=True)
class _Version:
    """A model version of qpack's: `number` is MLflow's, `root` where its files are in the server's artifacts."""

    number: int
    version: str
    digest: str
    root: str
    run: str
    created: str


@dataclass(frozen=True)
class MlflowRegistry:
    """Satisfies `registry.core.protocol.Remote`."""

    client: Client
    progress: Progress = nothing

    def close(self) -> None:
        """See `Remote.close`."""
        self.client.http.close()

    def push(self, folder: Path, request: PushRequest, *, annotations: Mapping[str, str]) -> Published:
        """See `Releases.push`. `consume` has no effect."""
        return self.put(pack(folder, annotations), request)

    def put(self, bundle: ReleaseBundle, request: PushRequest) -> Published:
        """See `Releases.put`. `actor` and `note` become tags of the run."""
        name, version, alias = check_name(request.name), request.version, request.alias
        if version is not None:
            check_tag(version)
        if alias is not None:
            _alias_there(alias)
        known = self._versions(name)
        there = _same(name, known, version, bundle.digest)
        if there is None:
            if version is None:
                version = str(1 + max((int(one.version) for one in known if one.version.isdecimal()), default=0))
            there, made = self._made(name, version, bundle, request)
        else:
            made = False
        self._attach(there, bundle.attached)
        if alias is not None:
            self._set_alias(name, alias, there)
        return Published(
            reference=f"{name}:{there.version}",
            version=there.version,
            digest=bundle.digest,
            alias=alias,
            location=f"{self.client.base}/#/models/{_there(name)}/versions/{there.number}",
            already_there=not made,
        )

    def resolve(self, ref: Named) -> Resolved:
        """See `Releases.resolve`."""
        if isinstance(ref, Resolved):
            return ref
        parsed = Ref.parse(ref)
        return self._resolved(parsed.name, self._find(parsed))

    def list(self, name: str | None = None) -> tuple[Resolved, ...]:
        """See `Releases.list`. Models of others, without qpack's tags, aren't listed."""
        names = self._names() if name is None else (check_name(name),)
        found = [self._listed(one, version) for one in names for version in self._versions(one)]
        if name is not None and not found:
            raise self._unknown(Ref(name))
        return tuple(found)

    def _listed(self, name: str, version: _Version) -> Resolved:
        try:
            return self._resolved(name, version)
        except RegistryError as error:
            return Resolved(
                name=name, version=version.version, digest=version.digest, aliases=(), annotations={},
                created=version.created, unreadable=error.what,
            )  # fmt: skip

    def read(self, ref: Named, path: str) -> bytes:
        """See `Releases.read`. Refuses files of more than 256 MiB."""
        parsed = _ref(ref)
        version = self._find(parsed)
        files = {record.path: record for record in self._contents(version).files}
        if path not in files:
            hint = did_you_mean(path, files) or f"It has: {', '.join(sorted(files)[:12])}."
            raise RegistryError(NO_SUCH_FILE, f"{parsed} has no file {path!r}", hint=hint)
        return self._small(version, f"{_RELEASE}/{path}", f"sha256:{files[path].sha256}", _MOST_READ)

    def pull(self, ref: Named, dest: Path, check: Check = lambda _: None) -> Resolved:
        """See `Releases.pull`. After an interruption, the files that are there stay beside `dest`."""
        parsed = _ref(ref)
        version = self._find(parsed)
        contents = self._contents(version)
        check(contents)
        resolved = ref if isinstance(ref, Resolved) else self._resolved(parsed.name, version)
        with arriving(dest, version.digest, contents.files) as draft:
            self._receive(version, contents.files, draft)
        return resolved

    def fetch_bundle(self, ref: Named, folder: Path) -> ReleaseBundle:
        """See `Remote.fetched`."""
        version = self._find(_ref(ref))
        manifest = self._manifest(version)
        contents = modelpack.read_manifest(manifest, f"the manifest of {version.version}")
        config = self._small(version, _CONFIG, contents.config_digest, modelpack.LARGEST_MANIFEST)
        self._receive(version, contents.files, folder)
        sources = {f"sha256:{record.sha256}": folder / record.path for record in contents.files}
        return ReleaseBundle(manifest, config, contents, sources, tuple(self._attached(version)))

    def alias(self, move: AliasMove) -> Resolved:
        """See `Releases.alias`. Compare and move are two requests: a move in between is overwritten."""
        check_name(move.name)
        _alias_there(move.alias)
        target = self._find(Ref(move.name, move.version), versions_only=True)
        before = {alias: one.version for alias, one in self._aliases(move.name)}.get(move.alias)
        move.check_expected(before)
        if before != move.version:
            self._set_alias(move.name, move.alias, target)
        return self._resolved(move.name, target)

    def remove(self, ref: Ref, *, drop_aliases: bool, actor: str, note: str) -> Removed:  # noqa: ARG002
        """See `Releases.remove`. The run and its files stay, as MLflow's own removal leaves them: `mlflow gc`."""
        if ref.tag is None and ref.digest is None:
            raise RegistryError(VERSION_NEEDED, f"{ref} names no version", hint=f"Name one, such as {ref.name}:1.")
        found = self._find(ref, versions_only=True)
        aliases = tuple(sorted(alias for alias, one in self._aliases(ref.name) if one == found))
        if aliases and not drop_aliases:
            raise changes.pointed_at(str(ref), aliases)
        # MLflow removes a version's aliases with it.
        self._delete(ref.name, found)
        gone = {"name": ref.name, "version": found.version, "digest": found.digest}
        return Removed(**gone, when=changes.now(), why=note, dropped=aliases)

    # What is there

    def _names(self) -> tuple[str, ...]:
        entries = self.client.pages("registered-models/search", {"max_results": 200}, "registered_models")
        names = (str(entry.get("name", "")).replace("~", "/") for entry in entries if isinstance(entry, dict))
        return tuple(sorted(name for name in names if _is_ours(name)))

    def _versions(self, name: str) -> tuple[_Version, ...]:
        """In the order of publication. Of several with one version, or one digest, the first counts."""
        query: dict[str, str | int] = {"filter": f"name='{_there(name)}'", "max_results": 200}
        entries = self.client.pages("model-versions/search", query, "model_versions")
        found = sorted(filter(None, map(_version, entries)), key=lambda one: one.number)
        first: dict[str, _Version] = {}
        for one in found:
            first.setdefault(one.version, one)
        return tuple(first.values())

    def _aliases(self, name: str) -> Iterator[tuple[str, _Version]]:
        try:
            model = self.client.get("registered-models/get", {"name": _there(name)}).get("registered_model", {})
        except Refused as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return
            raise
        numbers = {one.number: one for one in self._versions(name)}
        for entry in model.get("aliases", []):
            alias, number = str(entry.get("alias")), str(entry.get("version"))
            if number.isdecimal() and int(number) in numbers:
                yield DEFAULT_ALIAS if alias == _LATEST else alias, numbers[int(number)]

    def _find(self, ref: Ref, *, versions_only: bool = False) -> _Version:
        """The version at `ref`. A tag and a digest have to agree."""
        versions = self._versions(ref.name)
        tag = ref.tag or (None if ref.digest else DEFAULT_ALIAS)
        named = {one.version: one for one in reversed(versions)}
        if not versions_only:
            named = {**dict(self._aliases(ref.name)), **named}
        found = named.get(tag) if tag else next((one for one in versions if one.digest == ref.digest), None)
        if found is None:
            raise self._unknown(ref)
        if ref.digest not in (None, found.digest):
            raise RegistryError(
                DIGEST_DIFFERS,
                f"{ref.name}:{tag} is {found.digest}, not {ref.digest}",
                hint="Leave the digest out to take what the tag names now, or leave the tag out to take the digest.",
            )
        return found

    def _resolved(self, name: str, version: _Version) -> Resolved:
        annotations = self._contents(version).annotations
        aliases = tuple(sorted(alias for alias, one in self._aliases(name) if one == version))
        return Resolved(
            name=name,
            version=version.version,
            digest=version.digest,
            aliases=aliases,
            annotations=annotations,
            created=annotations.get(modelpack.CREATED, version.created),
        )

    def _manifest(self, version: _Version) -> bytes:
        return self._small(version, _MANIFEST, version.digest, modelpack.LARGEST_MANIFEST)

    def _contents(self, version: _Version) -> modelpack.Contents:
        return modelpack.read_manifest(self._manifest(version), f"the manifest of version {version.version}")

    def _small(self, version: _Version, path: str, digest: str, limit: int) -> bytes:
        with self.client.download(f"{version.root}/{path}", 0) as chunks:
            return read_whole(chunks, path, digest, limit)

    def _receive(self, version: _Version, files: tuple[FileRecord, ...], folder: Path) -> None:
        counter = Counter(sum(record.size_bytes for record in files), "bytes received", self.progress)
        at = f"{version.root}/{_RELEASE}"
        receive(folder, files, lambda record, offset: self.client.download(f"{at}/{record.path}", offset), counter)

    def _unknown(self, ref: Ref) -> RegistryError:
        versions = self._versions(ref.name)
        if versions:
            named = {**{one.version: one for one in versions}, **dict(self._aliases(ref.name))}
            shown = [f"{tag} ({one.digest[:19]}...)" if ref.digest else tag for tag, one in named.items()]
            wanted = ref.tag or ref.digest or DEFAULT_ALIAS
            hint = f"{did_you_mean(wanted, named)} Available: {', '.join(shown[:8])}."
            return RegistryError(
                NO_SUCH_VERSION, f"{ref.name} at {self.client.base} has no {wanted!r}", hint=hint.strip()
            )
        names = [name for name in self._names() if self._versions(name)]
        hint = did_you_mean(ref.name, names) or (f"Available: {', '.join(names[:8])}." if names else "")
        what = f"there is no release named {ref.name!r} at {self.client.base}"
        return RegistryError(NO_SUCH_RELEASE, what, hint=hint or "Nothing was published here yet.")

    # Publishing

    def _made(self, name: str, version: str, bundle: ReleaseBundle, request: PushRequest) -> tuple[_Version, bool]:
        """The version, made now, and whether another writer was first with the same content."""
        run, root = self._run(name, version, request)
        self._upload(root, bundle)
        self._log(run, bundle)
        tags = {_VERSION: version, _DIGEST: bundle.digest, _ROOT: root}
        body: dict[str, Json] = {
            "name": _there(name),
            "source": f"mlflow-artifacts:/{root}/{_RELEASE}/model",
            "run_id": run,
            "description": f"{name}:{version}, {bundle.digest}",
            "tags": _pairs(tags),
        }
        self._registered(name)
        answer = self.client.send("POST", "model-versions/create", body).get("model_version", {})
        mine = _version({**answer, "tags": body["tags"]})
        if mine is None:
            raise RegistryError(
                REGISTRY_REFUSED, f"{self.client.base} made no version of {name}", hint="See the server's log."
            )
        self.client.send("POST", "runs/update", {"run_id": run, "status": "FINISHED", "end_time": _now()})
        # Another writer may have used the same version, or published the same content, meanwhile.
        versions = self._versions(name)
        first = next((one for one in versions if one.version == version), mine)
        twin = next((one for one in versions if one.digest == mine.digest), mine)
        if first.number == mine.number and twin.number in (mine.number, first.number):
            return mine, True
        self._delete(name, mine)
        if request.version is None and first.digest != mine.digest and twin.number == mine.number:
            return self._made(name, str(1 + max(int(v.version) for v in versions if v.version.isdecimal())), bundle,
                              request)  # fmt: skip
        if twin.number != mine.number and request.version in (None, twin.version):
            return twin, False
        raise _other_content(name, version, first.digest)

    def _registered(self, name: str) -> None:
        try:
            self.client.send("POST", "registered-models/create", {"name": _there(name)})
        except Refused as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _run(self, name: str, version: str, request: PushRequest) -> tuple[str, str]:
        """A new run's ID, and where its artifacts are."""
        tags = {"mlflow.user": request.actor, "mlflow.note.content": request.note, _VERSION: version}
        body: dict[str, Json] = {
            "experiment_id": self._experiment(),
            "run_name": f"{name}:{version}",
            "start_time": _now(),
            "tags": _pairs({key: value[:5000] for key, value in tags.items() if value}),
        }
        info = self.client.send("POST", "runs/create", body).get("run", {}).get("info", {})
        uri = str(info.get("artifact_uri", ""))
        scheme, _, path = uri.partition(":/")
        root = path.lstrip("/") if "//" not in path else path.lstrip("/").partition("/")[2]
        if scheme != "mlflow-artifacts" or not _ROOTS.fullmatch(root) or ".." in root:
            raise RegistryError(
                _NO_ARTIFACTS,
                f"{self.client.base} doesn't store files itself (artifacts are at {scheme or 'no place'})",
                hint="Start it with `mlflow server --serve-artifacts`, and without a --default-artifact-root.",
            )
        return str(info.get("run_id", "")), root

    def _experiment(self) -> str:
        for _ in range(2):
            try:
                found = self.client.get("experiments/get-by-name", {"experiment_name": EXPERIMENT})
                return str(found["experiment"]["experiment_id"])
            except Refused as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            try:
                return str(self.client.send("POST", "experiments/create", {"name": EXPERIMENT})["experiment_id"])
            except Refused as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        raise RegistryError(
            REGISTRY_REFUSED, f"{self.client.base} has no experiment {EXPERIMENT!r}", hint="It may have been deleted."
        )

    def _upload(self, root: str, bundle: ReleaseBundle) -> None:
        counter = Counter(sum(record.size_bytes for record in bundle.contents.files), "bytes sent", self.progress)

        def one(record: FileRecord) -> None:
            source = bundle.source(record)
            # The server computes no digest of what it gets.
            if source.stat().st_size != record.size_bytes or sha256(source) != record.sha256:
                raise RegistryError(
                    DAMAGED_CONTENT, f"{record.path} is damaged: it is not {record.sha256}", hint="Run `qpack verify`."
                )

            def body() -> Iterator[bytes]:
                with open_regular(source) as file:
                    while block := file.read(_BLOCK):
                        yield block

            self.client.upload(f"{root}/{_RELEASE}/{record.path}", body, record.size_bytes)
            counter.moved(record.size_bytes)

        counter.all(one, bundle.contents.files)
        for path, data in ((_CONFIG, bundle.config), (_MANIFEST, bundle.manifest)):
            self.client.upload_bytes(f"{root}/{path}", data)

    def _log(self, run: str, bundle: ReleaseBundle) -> None:
        """Parameters and metrics of the run, where the release has evidence that this version reads."""
        record = next((record for record in bundle.contents.files if record.path == "release.json"), None)
        if record is None:
            return
        try:
            shown = evidence.of(release_folder.read(bundle.source(record).read_bytes(), "the release"))
        except RegistryError:
            return
        at = _now()
        metrics: Pairs = [
            {"key": key, "value": value, "timestamp": at, "step": 0} for key, value in shown.metrics.items()
        ]
        body: dict[str, Json] = {
            "run_id": run,
            "params": _pairs(shown.params)[:100],
            "tags": _pairs(shown.tags)[:100],
            "metrics": metrics[:800],
        }
        self.client.send("POST", "runs/log-batch", body)

    def _attach(self, version: _Version, attached: tuple[Attachment, ...]) -> None:
        for one in attached:
            blobs = {digest: base64.b64encode(blob).decode() for digest, blob in one.blobs.items()}
            data = json.dumps({"manifest": base64.b64encode(one.manifest).decode(), "blobs": blobs}).encode()
            name = modelpack.digest_of(one.manifest).removeprefix("sha256:")
            self.client.upload_bytes(f"{version.root}/{_ATTACHED}/{name}.json", data)

    def _attached(self, version: _Version) -> Iterator[Attachment]:
        """What is attached and whole: every blob is what its digest says."""
        files = self.client.get("artifacts/list", {"run_id": version.run, "path": _ATTACHED}).get("files", [])
        for entry in files[:_MOST_ATTACHED]:
            name = str(entry.get("path", "")).rpartition("/")[2]
            if not re.fullmatch(r"[0-9a-f]{64}\.json", name):
                continue
            data = bytearray()
            with self.client.download(f"{version.root}/{_ATTACHED}/{name}", 0) as chunks:
                for chunk in chunks:
                    data += chunk
                    if len(data) > _MOST_READ:
                        what = f"{name} is larger than {_MOST_READ:,} bytes"
                        raise RegistryError(TOO_LARGE, what, hint="qpack didn't write it.")
            if (found := _attachment(bytes(data), version.digest)) is not None:
                yield found

    def _set_alias(self, name: str, alias: str, version: _Version) -> None:
        body = {"name": _there(name), "alias": _alias_there(alias), "version": str(version.number)}
        self.client.send("POST", "registered-models/alias", body)

    def _delete(self, name: str, version: _Version) -> None:
        self.client.send("DELETE", "model-versions/delete", {"name": _there(name), "version": str(version.number)})


def _attachment(data: bytes, subject: str) -> Attachment | None:
    try:
        found = documents.parse(data)
        manifest = base64.b64decode(found["manifest"], validate=True)
        blobs = {str(digest): base64.b64decode(blob, validate=True) for digest, blob in found["blobs"].items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    needed = modelpack.attached_to(manifest, subject)
    whole = all(modelpack.digest_of(blob) == digest for digest, blob in blobs.items())
    return Attachment(manifest, blobs) if needed and whole and set(needed) <= set(blobs) else None


def _version(entry: Any) -> _Version | None:
    """A model version of qpack's, or None for one of somebody else's."""
    try:
        tags = {str(tag["key"]): str(tag["value"]) for tag in entry.get("tags", [])}
        version, digest, root = tags[_VERSION], modelpack.checked_digest(tags[_DIGEST]), tags[_ROOT]
        number, created = int(entry["version"]), int(entry.get("creation_timestamp") or 0)
        check_tag(version)
    except (ValueError, LookupError, TypeError, AttributeError, RegistryError):
        return None
    if not _ROOTS.fullmatch(root) or ".." in root:
        return None
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(max(0, min(created, 2**42)) / 1000))
    return _Version(number, version, digest, root, str(entry.get("run_id", "")), when)


def _same(name: str, known: tuple[_Version, ...], version: str | None, digest: str) -> _Version | None:
    """The version that has this content; None if there is none. Raises RegistryError if `version` has other content."""
    if version is None:
        return next((one for one in known if one.digest == digest), None)
    found = next((one for one in known if one.version == version), None)
    if found is not None and found.digest != digest:
        raise _other_content(name, version, found.digest)
    return found


def _other_content(name: str, version: str, digest: str) -> RegistryError:
    return RegistryError(
        VERSION_EXISTS,
        f"{name}:{version} exists with other content ({digest}), and versions never change",
        hint="Publish as another version.",
    )


def _alias_there(alias: str) -> str:
    """The alias as MLflow has it. Raises RegistryError for one that it can't have."""
    check_alias(alias)
    if alias == DEFAULT_ALIAS:
        return _LATEST
    if not _ALIAS.fullmatch(alias) or _RESERVED.fullmatch(alias) or alias == _LATEST:
        raise RegistryError(
            INVALID_NAME,
            f"{alias!r} can't be an alias in MLflow",
            hint="Use letters, digits, _ and -, such as 'production'.",
        )
    return alias


def _pairs(values: Mapping[str, str]) -> Pairs:
    return [{"key": key, "value": value} for key, value in values.items()]


def _there(name: str) -> str:
    return name.replace("/", "~")


def _is_ours(name: str) -> bool:
    try:
        check_name(name)
    except RegistryError:
        return False
    return True


def _ref(ref: Named) -> Ref:
    """The reference to request. A Resolved is requested by its version and digest."""
    return Ref(ref.name, ref.version, ref.digest) if isinstance(ref, Resolved) else Ref.parse(ref)


def _now() -> int:
    return int(time.time() * 1000)
