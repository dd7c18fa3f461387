"""The Hugging Face Hub: a release is one commit and one tag, written through the huggingface_hub client.

The model's files stand at the top, as every loader of Hub models expects them; the rest of the release stands under
`qpack/`, together with the OCI manifest and config, so that a pull gives the same digest as everywhere else
(docs/decisions/0011). The token is the client's business: HF_TOKEN, or what `hf auth login` stored.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qpack.errors import RegistryError
from qpack.files import sha256
from qpack.results import FileRecord, Published
from registry import modelpack
from registry.hub_content import Content, Stored, contents_of, not_ours, same
from registry.hub_errors import Transient, told
from registry.hub_layout import CONFIG, MANIFEST, OWN, hub_path
from registry.packed import Packed, Progress, nothing, pack
from registry.registry import Ref, Resolved, check_tag, did_you_mean
from registry.transfers import Counter, arriving

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAIN = "main"
TRIES = 4
_MOST_BYTES = 4 * 1024 * 1024
_MOST_FILES = 10_000


@dataclass(frozen=True)
class HubRegistry:
    """Satisfies `registry.registry.Remote`; names are `org/name`. `endpoint` None is HF_ENDPOINT or huggingface.co."""

    public: bool = False
    progress: Progress = nothing
    endpoint: str | None = None
    wait: Callable[[float], None] = time.sleep

    def close(self) -> None:
        """See `Remote.close`. The client keeps its own connections."""

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
        consume: bool = False,  # noqa: ARG002
    ) -> Published:
        """See `Releases.push`."""
        return self.put(pack(folder, annotations), name, version, alias, actor=actor, note=note)

    def put(
        self,
        packed: Packed,
        name: str,
        version: str | None,
        alias: str | None,
        *,
        actor: str,  # noqa: ARG002
        note: str = "",  # noqa: ARG002
        consume: bool = False,  # noqa: ARG002
    ) -> Published:
        """See `Releases.put`. One commit on `main` whose parent is what `main` was when it was looked at, then one tag.

        What was uploaded before a failure isn't uploaded again. After every failure the branch is looked at: a commit
        whose answer was lost is found and not made twice.
        """
        if version is None:
            raise RegistryError("a release on the Hub needs a version", hint="Name one: hf://org/name@1.")
        if alias not in (None, "latest"):
            raise RegistryError(
                f"the Hub has no alias {alias!r}: its tags don't move",
                hint="The branch main is what was published last.",
            )
        check_tag(version)
        with told(name, self._token()):
            api = self._api()
            self._preflight(api, name)
            contents = contents_of(packed)
            head = self._head(api, name)
            tagged = self._tags(api, name).get(version)
            if tagged is not None:
                self._check(api, name, version, tagged, contents)
                return self._published(api, name, version, packed.digest, there=True)
            commit = self._commit(api, name, version, head, contents)
            self._verify(api, name, commit, contents)
            self._tag(api, name, version, commit)
        return self._published(api, name, version, packed.digest, there=False)

    def resolve(self, ref: str) -> Resolved:
        """See `Releases.resolve`. Without a tag it is the branch main."""
        parsed = parse(ref)
        with told(parsed.name, self._token()):
            return self._look(parsed)[0]

    def list(self, name: str | None = None) -> tuple[Resolved, ...]:
        """See `Releases.list`. The Hub wants to know of which repository."""
        if name is None:
            raise RegistryError("the Hub has too many repositories to list", hint="Name one: org/name.")
        with told(name, self._token()):
            tags = self._tags(self._api(), name)
            return tuple(self._look(Ref(name, tag))[0] for tag in sorted(tags))

    def read(self, ref: str, path: str) -> bytes:
        """See `Releases.read`."""
        import tempfile

        parsed = parse(ref)
        with told(parsed.name, self._token()), tempfile.TemporaryDirectory() as folder:
            _, commit, _, contents = self._look(parsed)
            files = {record.path: record for record in contents.files}
            if path not in files:
                hint = did_you_mean(path, files) or f"It has: {', '.join(sorted(files)[:12])}."
                raise RegistryError(f"{ref} has no file {path!r}", hint=hint)
            self._fetch(parsed.name, commit, files[path], Path(folder))
            return (Path(folder) / path).read_bytes()

    def pull(self, ref: str, dest: Path) -> Resolved:
        """See `Releases.pull`. What has arrived when it breaks off is kept beside `dest`, and the next pull goes on."""
        parsed = parse(ref)
        with told(parsed.name, self._token()):
            resolved, commit, _, contents = self._look(parsed)
            with arriving(dest, resolved.digest, contents.files) as draft:
                self._receive(parsed.name, commit, contents, draft)
        return resolved

    def fetched(self, ref: str, folder: Path) -> Packed:
        """See `Remote.fetched`."""
        parsed = parse(ref)
        with told(parsed.name, self._token()):
            _, commit, manifest, contents = self._look(parsed)
            config = self._small(parsed.name, commit, CONFIG)
            if modelpack.digest_of(config) != contents.config_digest:
                raise RegistryError(f"{CONFIG} of {ref} is not what its manifest says", hint="Publish it again.")
            self._receive(parsed.name, commit, contents, folder)
        return Packed(manifest, config, contents, {f"sha256:{r.sha256}": folder / r.path for r in contents.files})

    def alias(
        self,
        name: str,
        alias: str,
        version: str,  # noqa: ARG002
        expected: str | None = None,  # noqa: ARG002
        *,
        actor: str,  # noqa: ARG002
        note: str = "",  # noqa: ARG002
    ) -> Resolved:
        """See `Releases.alias`: always refused."""
        raise RegistryError(
            f"{name}: the Hub has no alias {alias!r}, for its tags don't move",
            hint="Keep aliases in the local registry or an OCI registry.",
        )

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars

        # qpack shows progress itself.
        disable_progress_bars()
        return HfApi(endpoint=self.endpoint, library_name="qpack")

    @staticmethod
    def _token() -> str | None:
        from huggingface_hub import get_token

        return get_token()

    # Publishing

    def _preflight(self, api: HfApi, name: str) -> None:
        """The name, the token, its rights, and the repository; made if it isn't there."""
        from huggingface_hub.errors import RepositoryNotFoundError

        if self._token() is None:
            raise RegistryError("there is no token for the Hub", hint="Set HF_TOKEN, or run `hf auth login`.")
        me = api.whoami()
        owner = name.partition("/")[0]
        roles = {str(org.get("name")): org.get("roleInOrg") for org in me.get("orgs") or ()}
        if owner != me.get("name") and owner not in roles:
            mine = ", ".join([str(me.get("name")), *roles])
            raise RegistryError(f"the token may not write to {owner!r}", hint=f"It belongs to {mine}.")
        token = (me.get("auth") or {}).get("accessToken") or {}
        if roles.get(owner) == "read" or token.get("role") == "read":
            raise RegistryError(f"the token may read {owner!r} and not write", hint="Make a token with write access.")
        try:
            api.repo_info(name)
        except RepositoryNotFoundError:
            api.create_repo(name, private=not self.public, exist_ok=True)

    def _commit(self, api: HfApi, name: str, version: str, head: str, contents: tuple[Content, ...]) -> str:
        """The commit that has the release, made if `main` hasn't got it."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        before = self._tree(api, name, head)
        if same(before, contents):
            return head
        theirs = not_ours(before)
        if theirs:
            raise RegistryError(
                f"hf://{name} holds files that no release of qpack put there: {', '.join(sorted(theirs)[:5])}",
                hint="Publish to a repository of its own.",
            )
        gone = set(before) - {content.path for content in contents} - {".gitattributes"}
        done = 0
        for attempt in range(1, TRIES + 1):
            adding = [CommitOperationAdd(content.path, content.source) for content in contents]
            removing = [CommitOperationDelete(path) for path in sorted(gone)]
            try:
                self.progress(done, 0, "sending files to the Hub")
                with told(name, self._token()):
                    made = api.create_commit(
                        name, [*adding, *removing], commit_message=f"qpack: version {version}", parent_commit=head
                    )
                return str(made.oid)
            except RegistryError as error:
                # Was the commit made and its answer lost? Only the branch knows.
                now = self._head(api, name)
                if now != head:
                    if same(self._tree(api, name, now), contents):
                        return now
                    raise RegistryError(
                        f"somebody else changed hf://{name} meanwhile; nothing was published",
                        hint="Look at what changed, then run the same command again.",
                    ) from error
                if not isinstance(error, Transient) or attempt == TRIES:
                    raise
                self.wait(2.0**attempt)
        raise AssertionError("unreachable")

    def _check(self, api: HfApi, name: str, version: str, commit: str, contents: tuple[Content, ...]) -> None:
        if not same(self._tree(api, name, commit), contents):
            raise RegistryError(
                f"hf://{name}@{version} exists with other content, and versions never change",
                hint="Publish as another version: hf://org/name@VERSION.",
            )

    def _verify(self, api: HfApi, name: str, commit: str, contents: tuple[Content, ...]) -> None:
        """Every file on the Hub against its checksum, as the Hub reports it."""
        there = self._tree(api, name, commit)
        wrong = [c.path for c in contents if c.path not in there or not there[c.path].has(c)]
        if wrong:
            raise RegistryError(
                f"hf://{name}@{commit[:12]} is not what was sent: {', '.join(wrong[:5])}",
                hint="Nothing was tagged. A .gitignore in the repository leaves files out; else publish again.",
            )

    def _tag(self, api: HfApi, name: str, version: str, commit: str) -> None:
        for attempt in range(1, TRIES + 1):
            try:
                with told(name, self._token()):
                    api.create_tag(name, tag=version, revision=commit)
                return
            except RegistryError as error:
                found = self._tags(api, name).get(version)
                if found == commit:
                    return
                if found is not None:
                    raise RegistryError(
                        f"hf://{name}@{version} was tagged by somebody else meanwhile, and tags never move",
                        hint="The files are on the branch main. Publish as another version.",
                    ) from error
                if not isinstance(error, Transient) or attempt == TRIES:
                    raise
                self.wait(2.0**attempt)

    def _published(self, api: HfApi, name: str, version: str, digest: str, *, there: bool) -> Published:
        return Published(
            reference=f"{name}:{version}",
            version=version,
            digest=digest,
            alias=None,
            location=f"{api.endpoint}/{name}/tree/{version}",
            already_there=there,
        )

    # Looking

    def _head(self, api: HfApi, name: str) -> str:
        return str(api.repo_info(name, revision=MAIN).sha)

    def _tags(self, api: HfApi, name: str) -> dict[str, str]:
        return {tag.name: tag.target_commit for tag in api.list_repo_refs(name).tags}

    def _tree(self, api: HfApi, name: str, commit: str) -> dict[str, Stored]:
        from huggingface_hub.hf_api import RepoFile

        found: dict[str, Stored] = {}
        for item in api.list_repo_tree(name, revision=commit, recursive=True):
            if isinstance(item, RepoFile):
                large = item.lfs.sha256 if item.lfs else None
                found[item.path] = Stored(item.path, item.size, item.blob_id, large)
            if len(found) > _MOST_FILES:
                raise RegistryError(f"hf://{name} has more than {_MOST_FILES:,} files", hint="It is no release.")
        return found

    def _look(self, ref: Ref) -> tuple[Resolved, str, bytes, modelpack.Contents]:
        """What a tag, a commit or main is: with the commit, the manifest and what it says."""
        api = self._api()
        commit = str(api.repo_info(ref.name, revision=ref.tag or MAIN).sha)
        manifest = self._small(ref.name, commit, MANIFEST)
        contents = modelpack.read_manifest(manifest, f"{MANIFEST} of hf://{ref.name}")
        tags = sorted(tag for tag, target in self._tags(api, ref.name).items() if target == commit)
        resolved = Resolved(
            name=ref.name,
            version=ref.tag if ref.tag in tags else next(iter(tags), commit[:12]),
            digest=modelpack.digest_of(manifest),
            aliases=(),
            annotations=contents.annotations,
            created=contents.annotations.get(modelpack.CREATED, ""),
        )
        return resolved, commit, manifest, contents

    def _small(self, name: str, commit: str, path: str) -> bytes:
        import tempfile

        api = self._api()
        found = [item for item in api.get_paths_info(name, [path], revision=commit) if hasattr(item, "size")]
        if not found:
            raise RegistryError(f"hf://{name} is not a release of qpack: it has no {path}", hint="Check the name.")
        if found[0].size > _MOST_BYTES:
            raise RegistryError(f"{path} of hf://{name} is larger than {_MOST_BYTES:,} bytes", hint="It is no release.")
        with tempfile.TemporaryDirectory() as folder:
            return self._download(name, commit, path, Path(folder)).read_bytes()

    def _download(self, name: str, commit: str, path: str, folder: Path) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, path, revision=commit, local_dir=folder, endpoint=self.endpoint))

    # Fetching

    def _receive(self, name: str, commit: str, contents: modelpack.Contents, folder: Path) -> None:
        if any(record.path.partition("/")[0] == OWN for record in contents.files):
            raise RegistryError(
                f"hf://{name} has files in {OWN}/, where they can't be pulled", hint="It is no release."
            )
        counter = Counter(sum(record.size_bytes for record in contents.files), "bytes received", self.progress)

        def one(record: FileRecord) -> None:
            self._fetch(name, commit, record, folder)
            counter.moved(record.size_bytes)

        counter.all(one, contents.files)
        shutil.rmtree(folder / OWN, ignore_errors=True)

    def _fetch(self, name: str, commit: str, record: FileRecord, folder: Path) -> None:
        """One file, checked, by way of the client's own folder, in which it goes on with what broke off."""
        target = folder / record.path
        if target.is_file() and target.stat().st_size == record.size_bytes and sha256(target) == record.sha256:
            return
        found = self._download(name, commit, hub_path(record.path), folder / OWN)
        if found.stat().st_size != record.size_bytes or sha256(found) != record.sha256:
            found.unlink()
            raise RegistryError(
                f"{record.path} arrived damaged: its content is not sha256:{record.sha256}",
                hint="Run the same command again. If that doesn't help, publish the release again.",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        found.replace(target)


def parse(text: str) -> Ref:
    """`org/name` or `org/name:tag`. Names on the Hub may have capitals, so `Ref.parse` doesn't read them."""
    name, _, tag = text.partition(":")
    return Ref(name, tag or None)
