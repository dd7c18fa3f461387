"""The Hugging Face Hub: a release is one commit and one tag, written through the huggingface_hub client.

The model's files are at the top, as loaders of Hub models expect; the rest of the release is in `qpack/`, with the OCI
manifest and config, so a pull gives the same digest as elsewhere (docs/decisions/0011). The client reads the token:
HF_TOKEN, or the one that `hf auth login` stored.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qpack.core.errors import RegistryError
from qpack.core.problems import NO_SUCH_FILE
from qpack.core.records import Published
from registry.core import modelpack
from registry.core.bundle import Progress, ReleaseBundle, nothing, pack
from registry.core.codes import (
    CHANGED_MEANWHILE,
    DAMAGED_CONTENT,
    FOREIGN_CONTENT,
    INVALID_NAME,
    LOGIN_REFUSED,
    NO_LOGIN,
    NO_SUCH_ALIAS,
    NOT_REMOVABLE,
    TOO_MANY,
    VERSION_EXISTS,
    VERSION_NEEDED,
)
from registry.core.protocol import (
    AliasMove,
    Check,
    Named,
    PushRequest,
    Ref,
    Removed,
    Resolved,
    check_tag,
    did_you_mean,
    is_tag,
)
from registry.core.transfers import arriving
from registry.hub.client import unusable
from registry.hub.content import (
    Content,
    HubFiles,
    Stored,
    attachments_of,
    contents_of,
    foreign_files,
    has_all,
    obsolete_files,
    same_files,
)
from registry.hub.errors import Transient, translate_errors
from registry.hub.layout import CONFIG
from registry.hub.reader import MAIN, HubReader

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi


TRIES = 4


@dataclass(frozen=True)
class _Commit:
    """A commit to make. `done` says of the files of a commit whether it has what this one brings."""

    message: str
    added: tuple[Content, ...]
    removed: tuple[str, ...]
    done: Callable[[dict[str, Stored]], bool]

    def adding(self) -> list[CommitOperationAdd]:
        """What the client uploads; made anew for each try, since it remembers what it uploaded."""
        from huggingface_hub import CommitOperationAdd

        return [CommitOperationAdd(content.path, content.source) for content in self.added]

    def removing(self) -> list[CommitOperationDelete]:
        """What the client deletes."""
        from huggingface_hub import CommitOperationDelete

        return [CommitOperationDelete(path) for path in self.removed]


@dataclass(frozen=True)
class HubSettings:
    """How a release is put on the Hub. `public` and `gated` are for new repositories; `collection` is the slug of a
    collection that the repository is added to; `as_pr` opens a pull request in place of a commit on `branch`, which is
    made from main if it isn't there.
    """

    public: bool = False
    gated: Literal["auto", "manual"] | None = None
    collection: str | None = None
    as_pr: bool = False
    branch: str = MAIN


@dataclass(frozen=True)
class HubRegistry:
    """Satisfies `registry.core.protocol.Remote`; names are `org/name`.

    `endpoint` None is HF_ENDPOINT or huggingface.co.
    """

    settings: HubSettings = HubSettings()
    progress: Progress = nothing
    endpoint: str | None = None
    wait: Callable[[float], None] = time.sleep

    def close(self) -> None:
        """See `Remote.close`. The client manages its connections."""

    def push(self, folder: Path, request: PushRequest, *, annotations: Mapping[str, str]) -> Published:
        """See `Releases.push`."""
        return self.put(pack(folder, annotations), request)

    def put(self, bundle: ReleaseBundle, request: PushRequest) -> Published:
        """See `Releases.put`. One commit on the branch whose parent is its head when it was read, then one tag.

        Files that were uploaded before a failure aren't uploaded again. After every failure the branch is read: a
        commit whose answer was lost is found, not repeated. Signatures that were attached later are another commit on
        the branch; the tag stays. `actor`, `note` and `consume` have no effect.
        """
        name, version, alias = request.name, request.version, request.alias
        if version is None:
            raise RegistryError(
                VERSION_NEEDED, "a release on the Hub needs a version", hint="Add one: hf://org/name@1."
            )
        if alias not in (None, "latest"):
            raise RegistryError(
                NO_SUCH_ALIAS,
                f"the Hub has no alias {alias!r}: its tags don't move",
                hint="The branch main is the last published version.",
            )
        check_tag(version)
        _check_branch(self.settings.branch, (version,))
        with translate_errors(name, self._token()):
            api = self._reader.api()
            self._preflight(api, name)
            contents, attached = contents_of(bundle), attachments_of(bundle)
            tags = self._reader.tags(api, name)
            self._branch(api, name, tags)
            head = self._reader.head(api, name)
            tagged = tags.get(version)
            if tagged is not None:
                self._check(api, name, version, tagged, contents)
                self._attach(api, name, version, head, attached)
                return self._published(api, name, version, bundle.digest, there=True)
            if self.settings.as_pr and (
                opened := self._proposed(api, name, version, head, HubFiles(contents, attached))
            ):
                return self._published(api, name, version, bundle.digest, there=False, location=opened)
            commit = self._release(api, name, version, head, HubFiles(contents, attached))
            self._verify(api, name, commit, (*contents, *attached))
            self._tag(api, name, version, commit)
            self._collect(api, name)
        return self._published(api, name, version, bundle.digest, there=False)

    def resolve(self, ref: Named) -> Resolved:
        """See `Releases.resolve`. Without a tag, the branch main."""
        if isinstance(ref, Resolved):
            return ref
        parsed = parse(ref)
        with translate_errors(parsed.name, self._token()):
            return self._reader.find(parsed)[0]

    def list(self, name: str | None = None) -> tuple[Resolved, ...]:
        """See `Releases.list`. Needs a repository."""
        if name is None:
            raise RegistryError(TOO_MANY, "the Hub has too many repositories to list", hint="Give one: org/name.")
        with translate_errors(name, self._token()):
            tags = self._reader.tags(self._reader.api(), name)
            return tuple(self._listed(name, tag) for tag in sorted(tags))

    def _listed(self, name: str, tag: str) -> Resolved:
        try:
            with translate_errors(name, self._token()):
                return self._reader.find(Ref(name, tag))[0]
        except Transient:
            raise
        except RegistryError as error:
            why = error.what
        return Resolved(name=name, version=tag, digest="", aliases=(), annotations={}, created="", unreadable=why)

    def read(self, ref: Named, path: str) -> bytes:
        """See `Releases.read`."""
        import tempfile

        parsed = _ref(ref)
        with translate_errors(parsed.name, self._token()), tempfile.TemporaryDirectory() as folder:
            _, commit, _, contents = self._look(parsed)
            files = {record.path: record for record in contents.files}
            if path not in files:
                hint = did_you_mean(path, files) or f"It has: {', '.join(sorted(files)[:12])}."
                raise RegistryError(NO_SUCH_FILE, f"{parsed} has no file {path!r}", hint=hint)
            self._reader.fetch(parsed.name, commit, files[path], Path(folder))
            return (Path(folder) / path).read_bytes()

    def pull(self, ref: Named, dest: Path, check: Check = lambda _: None) -> Resolved:
        """See `Releases.pull`. After an interruption, the downloaded part stays beside `dest`, and the next pull
        resumes.
        """
        parsed = _ref(ref)
        with translate_errors(parsed.name, self._token()):
            resolved, commit, _, contents = self._look(parsed)
            check(contents)
            with arriving(dest, resolved.digest, contents.files) as draft:
                self._reader.receive(parsed.name, commit, contents, draft)
        return resolved

    def fetch_bundle(self, ref: Named, folder: Path) -> ReleaseBundle:
        """See `Remote.fetched`."""
        parsed = _ref(ref)
        with translate_errors(parsed.name, self._token()):
            _, commit, manifest, contents = self._look(parsed)
            config = self._reader.small(parsed.name, commit, CONFIG)
            if modelpack.digest_of(config) != contents.config_digest:
                raise RegistryError(
                    DAMAGED_CONTENT,
                    f"{CONFIG} of {parsed} doesn't match its manifest",
                    hint="Publish the release again.",
                )
            self._reader.receive(parsed.name, commit, contents, folder)
            attached = tuple(self._reader.attached(parsed.name, modelpack.digest_of(manifest)))
        sources = {f"sha256:{r.sha256}": folder / r.path for r in contents.files}
        return ReleaseBundle(manifest, config, contents, sources, attached)

    def alias(self, move: AliasMove) -> Resolved:
        """See `Releases.alias`: always refused."""
        raise RegistryError(
            NO_SUCH_ALIAS,
            f"{move.name}: the Hub has no alias {move.alias!r}, because its tags don't move",
            hint="Keep aliases in the local registry or an OCI registry.",
        )

    def remove(self, ref: Ref, *, drop_aliases: bool, actor: str, note: str) -> Removed:  # noqa: ARG002
        """See `Releases.remove`: always refused."""
        raise RegistryError(
            NOT_REMOVABLE,
            f"hf://{ref.name} was not changed: deleting a tag would keep its commit",
            hint="Delete the tag or the repository with `hf repos`, or on the Hub's page of the repository.",
        )

    def _look(self, ref: Ref) -> tuple[Resolved, str, bytes, modelpack.Contents]:
        """Resolve `ref`. Raises RegistryError if it has a digest and main has moved since."""
        found = self._reader.find(ref)
        if ref.digest not in (None, found[0].digest):
            raise RegistryError(
                CHANGED_MEANWHILE, f"hf://{ref.name} has moved meanwhile", hint="Run the command again."
            )
        return found

    @property
    def _reader(self) -> HubReader:
        return HubReader(self.endpoint, self.progress, self.settings.branch)

    @staticmethod
    def _token() -> str | None:
        from huggingface_hub import get_token

        return get_token()

    # Publishing

    def _preflight(self, api: HfApi, name: str) -> None:
        """Check name, token and permissions; create the repository if needed."""
        from huggingface_hub.errors import RepositoryNotFoundError

        if self._token() is None:
            raise RegistryError(NO_LOGIN, "no token for the Hub", hint="Set HF_TOKEN, or run `hf auth login`.")
        me = api.whoami()
        owner = name.partition("/")[0]
        if not isinstance(me, dict):
            raise unusable(name, "no owner of the token")
        found = me.get("orgs")
        orgs = found if isinstance(found, list) else []
        roles = {str(org.get("name")): org.get("roleInOrg") for org in orgs if isinstance(org, dict)}
        if owner != me.get("name") and owner not in roles:
            mine = ", ".join([str(me.get("name")), *roles])
            raise RegistryError(
                LOGIN_REFUSED, f"the token has no write access to {owner!r}", hint=f"It belongs to {mine}."
            )
        auth = me.get("auth")
        token = auth.get("accessToken") if isinstance(auth, dict) else None
        if roles.get(owner) == "read" or (isinstance(token, dict) and token.get("role") == "read"):
            raise RegistryError(
                LOGIN_REFUSED, f"the token has only read access to {owner!r}", hint="Create a token with write access."
            )
        try:
            api.repo_info(name)
        except RepositoryNotFoundError:
            api.create_repo(name, private=not self.settings.public, exist_ok=True)
            if self.settings.gated is not None:
                api.update_repo_settings(name, gated=self.settings.gated)

    def _branch(self, api: HfApi, name: str, tags: Iterable[str]) -> None:
        """Make the branch if needed."""
        branch = self.settings.branch
        if branch != MAIN:
            _check_branch(branch, tags)
            if branch not in self._reader.branches(api, name):
                api.create_branch(name, branch=branch, exist_ok=True)

    def _collect(self, api: HfApi, name: str) -> None:
        if self.settings.collection is not None:
            api.add_collection_item(self.settings.collection, item_id=name, item_type="model", exists_ok=True)

    def _release(self, api: HfApi, name: str, version: str, head: str, files: HubFiles) -> str:
        """The commit that has the release and its attachments; made unless the branch has them."""
        return self._commit(api, name, head, self._wanted(api, name, version, head, files))

    def _proposed(self, api: HfApi, name: str, version: str, head: str, files: HubFiles) -> str | None:
        """The address of a pull request that brings the release; None if only its tag is missing."""
        wanted = self._wanted(api, name, version, head, files)
        if wanted.done(self._reader.tree(api, name, head)):
            return None
        self.progress(0, 0, "uploading to the Hub")
        made = api.create_commit(
            name,
            [*wanted.adding(), *wanted.removing()],
            commit_message=wanted.message,
            commit_description="Once this is merged, `qpack publish` tags the version.",
            parent_commit=head,
            revision=self.settings.branch,
            create_pr=True,
        )
        if not made.pr_url:
            raise unusable(name, "no address of the pull request")
        return str(made.pr_url)

    def _wanted(self, api: HfApi, name: str, version: str, head: str, files: HubFiles) -> _Commit:
        """The commit on top of `head` that brings a release."""
        before = self._reader.tree(api, name, head)
        foreign = foreign_files(before)
        if foreign:
            raise RegistryError(
                FOREIGN_CONTENT,
                f"hf://{name} holds files that qpack didn't publish: {', '.join(sorted(foreign)[:5])}",
                hint="Publish to a repository of its own.",
            )
        return _Commit(
            message=f"qpack: version {version}",
            added=(*files.contents, *files.attached),
            removed=obsolete_files(before, files.contents),
            done=lambda tree: same_files(tree, files.contents) and has_all(tree, files.attached),
        )

    def _attach(self, api: HfApi, name: str, version: str, head: str, attached: tuple[Content, ...]) -> None:
        """Add to the branch what was attached since the version was published."""
        message = f"qpack: attached to version {version}"
        wanted = _Commit(message, attached, (), lambda tree: has_all(tree, attached))
        commit = self._commit(api, name, head, wanted)
        self._verify(api, name, commit, attached)

    def _commit(self, api: HfApi, name: str, head: str, wanted: _Commit) -> str:
        """A commit on top of `head`; `head` itself where nothing is left to do."""
        if wanted.done(self._reader.tree(api, name, head)):
            return head
        for attempt in range(1, TRIES + 1):
            try:
                self.progress(0, 0, "uploading to the Hub")
                with translate_errors(name, self._token()):
                    made = api.create_commit(
                        name,
                        [*wanted.adding(), *wanted.removing()],
                        commit_message=wanted.message,
                        parent_commit=head,
                        revision=self.settings.branch,
                    )
                return str(made.oid)
            except RegistryError as error:
                # Was the commit made and its answer lost? Only the branch knows.
                now = self._reader.head(api, name)
                if now != head:
                    if wanted.done(self._reader.tree(api, name, now)):
                        return now
                    raise RegistryError(
                        CHANGED_MEANWHILE,
                        f"hf://{name} was changed by somebody else during the upload; nothing was published",
                        hint="Check what changed, then run the same command again.",
                    ) from error
                if not isinstance(error, Transient) or attempt == TRIES:
                    raise
                self.wait(2.0**attempt)
        raise AssertionError("unreachable")

    def _check(self, api: HfApi, name: str, version: str, commit: str, contents: tuple[Content, ...]) -> None:
        if not same_files(self._reader.tree(api, name, commit), contents):
            raise RegistryError(
                VERSION_EXISTS,
                f"hf://{name}@{version} exists with other content, and versions never change",
                hint="Publish as another version: hf://org/name@VERSION.",
            )

    def _verify(self, api: HfApi, name: str, commit: str, contents: tuple[Content, ...]) -> None:
        """Compare every file with the checksum that the Hub reports."""
        there = self._reader.tree(api, name, commit)
        wrong = [c.path for c in contents if c.path not in there or not there[c.path].has(c)]
        if wrong:
            raise RegistryError(
                DAMAGED_CONTENT,
                f"hf://{name}@{commit[:12]} differs from what was uploaded: {', '.join(wrong[:5])}",
                hint="Nothing was tagged. Check for a .gitignore in the repository, or publish again.",
            )

    def _tag(self, api: HfApi, name: str, version: str, commit: str) -> None:
        for attempt in range(1, TRIES + 1):
            try:
                with translate_errors(name, self._token()):
                    api.create_tag(name, tag=version, revision=commit)
                return
            except RegistryError as error:
                found = self._reader.tags(api, name).get(version)
                if found == commit:
                    return
                if found is not None:
                    raise RegistryError(
                        VERSION_EXISTS,
                        f"hf://{name}@{version} was tagged by somebody else meanwhile, and tags never move",
                        hint=f"The files are on the branch {self.settings.branch}. Publish as another version.",
                    ) from error
                if not isinstance(error, Transient) or attempt == TRIES:
                    raise
                self.wait(2.0**attempt)

    def _published(
        self, api: HfApi, name: str, version: str, digest: str, *, there: bool, location: str | None = None
    ) -> Published:
        return Published(
            reference=f"{name}:{version}",
            version=version,
            digest=digest,
            alias=None,
            location=location or f"{api.endpoint}/{name}/tree/{version}",
            already_there=there,
        )


def _check_branch(branch: str, versions: Iterable[str]) -> None:
    """Raises RegistryError if the branch can't be named in a reference, or is named as a version."""
    if not is_tag(branch):
        raise RegistryError(
            INVALID_NAME, f"{branch!r} can't be a branch", hint="Use letters, digits, '.', '_' and '-', without '/'."
        )
    if branch in versions:
        raise RegistryError(
            INVALID_NAME, f"the branch {branch!r} would be named as a version is", hint="Use another name."
        )


def _ref(ref: Named) -> Ref:
    """The reference to request. For a Resolved: its tag, or main if that still has its digest."""
    if not isinstance(ref, Resolved):
        return parse(ref)
    untagged = re.fullmatch(r"[0-9a-f]{12}", ref.version)
    return Ref(ref.name, None if untagged else ref.version, ref.digest)


def parse(text: str) -> Ref:
    """`org/name` or `org/name:tag`. Names on the Hub may have capitals, so `Ref.parse` doesn't read them."""
    name, _, tag = text.partition(":")
    return Ref(name, tag or None)
