"""Reads repositories on the Hub, through the huggingface_hub client."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qpack.core.errors import RegistryError
from qpack.core.hashing import sha256
from qpack.core.records import FileRecord
from registry.core import modelpack
from registry.core.bundle import Attachment, Progress
from registry.core.codes import DAMAGED_CONTENT, NOT_A_RELEASE, TOO_LARGE
from registry.core.files import bounded, confined
from registry.core.protocol import Ref, Resolved, check_tag
from registry.core.transfers import Counter
from registry.hub import client
from registry.hub.content import Stored
from registry.hub.layout import ATTACHED, MANIFEST, OWN, hub_path

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAIN = "main"
_MOST_BYTES = 4 * 1024 * 1024
_MOST_FILES = 10_000
_MOST_ATTACHED = 300
_MOST_BRANCHES = 32


@dataclass(frozen=True)
class HubReader:
    """Reads of repositories named `org/name`, published on `branch`. `endpoint` None is HF_ENDPOINT or huggingface.co.

    Errors of the client pass through; callers use `translate_errors`.
    """

    endpoint: str | None
    progress: Progress
    branch: str = MAIN

    def api(self) -> HfApi:
        """The client."""
        return client.api(self.endpoint)

    def head(self, api: HfApi, name: str) -> str:
        """The head commit of the branch."""
        return client.commit_id(api.repo_info(name, revision=self.branch).sha, name)

    def branches(self, api: HfApi, name: str) -> dict[str, str]:
        """Head commits by branch, main first, without invalid names."""
        found = {}
        for branch in sorted(api.list_repo_refs(name).branches, key=lambda each: each.name != MAIN):
            with contextlib.suppress(RegistryError, TypeError):
                found[check_tag(branch.name)] = client.commit_id(branch.target_commit, name)
        return found

    def tags(self, api: HfApi, name: str) -> dict[str, str]:
        """Commits by tag, without invalid tags."""
        found = {}
        for tag in api.list_repo_refs(name).tags:
            with contextlib.suppress(RegistryError, TypeError):
                found[check_tag(tag.name)] = client.commit_id(tag.target_commit, name)
        return found

    def tree(self, api: HfApi, name: str, commit: str) -> dict[str, Stored]:
        """Every file of a commit, by path."""
        from huggingface_hub.hf_api import RepoFile

        found: dict[str, Stored] = {}
        for count, item in enumerate(api.list_repo_tree(name, revision=commit, recursive=True), 1):
            if count > _MOST_FILES:
                raise RegistryError(
                    NOT_A_RELEASE,
                    f"hf://{name} has more than {_MOST_FILES:,} files",
                    hint="It is not a release of qpack.",
                )
            if isinstance(item, RepoFile):
                large = item.lfs.sha256 if item.lfs else None
                if not all(isinstance(text, str) for text in (item.path, item.blob_id, large or "")):
                    raise client.unusable(name, "a file without a path or a checksum")
                found[item.path] = Stored(item.path, client.size_of(item, name), item.blob_id, large)
        return found

    def find(self, ref: Ref) -> tuple[Resolved, str, bytes, modelpack.Contents]:
        """Resolve a tag, a branch, a commit or main: the version, its commit, its manifest and the manifest's contents.

        A branch whose head has no tag, since a signature was added, gives its own name as the version.
        """
        api = self.api()
        commit = client.commit_id(api.repo_info(ref.name, revision=ref.tag or MAIN).sha, ref.name)
        manifest = self.small(ref.name, commit, MANIFEST)
        contents = modelpack.read_manifest(manifest, f"{MANIFEST} of hf://{ref.name}")
        tags = sorted(tag for tag, target in self.tags(api, ref.name).items() if target == commit)
        untagged = (
            ref.tag if ref.tag is not None and ref.tag != MAIN and not commit.startswith(ref.tag) else commit[:12]
        )
        resolved = Resolved(
            name=ref.name,
            version=ref.tag if ref.tag in tags else next(iter(tags), untagged),
            digest=modelpack.digest_of(manifest),
            aliases=(),
            annotations=contents.annotations,
            created=contents.annotations.get(modelpack.CREATED, ""),
        )
        return resolved, commit, manifest, contents

    def small(self, name: str, commit: str, path: str) -> bytes:
        """A small file's content. Raises RegistryError if it is missing or larger than 4 MiB."""
        api = self.api()
        found = [item for item in api.get_paths_info(name, [path], revision=commit) if hasattr(item, "size")]
        if not found:
            raise RegistryError(
                NOT_A_RELEASE, f"hf://{name} is not a release of qpack: it has no {path}", hint="Check the name."
            )
        size = client.size_of(found[0], name)
        if size > _MOST_BYTES:
            raise RegistryError(
                TOO_LARGE,
                f"{path} of hf://{name} is larger than {_MOST_BYTES:,} bytes",
                hint="It is not a release of qpack.",
            )
        with tempfile.TemporaryDirectory() as folder:
            return bounded(self._download(name, commit, path, size, Path(folder)), _MOST_BYTES)

    def _download(self, name: str, commit: str, path: str, size: int, folder: Path) -> Path:
        from huggingface_hub import hf_hub_download

        confined(folder, path)
        with client.at_most(size):
            return Path(hf_hub_download(name, path, revision=commit, local_dir=folder, endpoint=self.endpoint))

    def receive(self, name: str, commit: str, contents: modelpack.Contents, folder: Path) -> None:
        """Download every file of a release into `folder`, checked."""
        if any(record.path.partition("/")[0] == OWN for record in contents.files):
            raise RegistryError(
                NOT_A_RELEASE,
                f"hf://{name} has files in {OWN}/, which can't be pulled",
                hint="It is not a release of qpack.",
            )
        counter = Counter(sum(record.size_bytes for record in contents.files), "bytes received", self.progress)

        def one(record: FileRecord) -> None:
            self.fetch(name, commit, record, folder)
            counter.moved(record.size_bytes)

        counter.all(one, contents.files)
        shutil.rmtree(folder / OWN, ignore_errors=True)

    def attached(self, name: str, digest: str) -> Iterator[Attachment]:
        """The attachments of a release on every branch. Skips files that don't match the digest in their name."""
        api = self.api()
        folder = f"{ATTACHED}/{digest.removeprefix('sha256:')}/"
        commits: dict[str, str] = {}
        for commit in list(dict.fromkeys(self.branches(api, name).values()))[:_MOST_BRANCHES]:
            for path in self.tree(api, name, commit):
                if re.fullmatch(re.escape(folder) + "[0-9a-f]{64}", path):
                    commits.setdefault(path, commit)
        found = {}
        for path, commit in sorted(commits.items())[:_MOST_ATTACHED]:
            data = self.small(name, commit, path)
            if modelpack.digest_of(data) == f"sha256:{path.removeprefix(folder)}":
                found[modelpack.digest_of(data)] = data
        for data in found.values():
            needed = modelpack.attached_to(data, digest)
            if needed and all(one in found for one in (*needed, modelpack.digest_of(modelpack.EMPTY))):
                names = (*needed, modelpack.digest_of(modelpack.EMPTY))
                yield Attachment(data, {one: found[one] for one in names})

    def fetch(self, name: str, commit: str, record: FileRecord, folder: Path) -> None:
        """Download one file, checked, through the client's own folder, where it resumes interrupted downloads."""
        target = folder / record.path
        if target.is_file() and target.stat().st_size == record.size_bytes and sha256(target) == record.sha256:
            return
        found = self._download(name, commit, hub_path(record.path), record.size_bytes, folder / OWN)
        if found.stat().st_size != record.size_bytes or sha256(found) != record.sha256:
            found.unlink()
            raise RegistryError(
                DAMAGED_CONTENT,
                f"{record.path} arrived damaged: its content is not sha256:{record.sha256}",
                hint="Run the command again. If that fails, publish the release again.",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        found.replace(target)
