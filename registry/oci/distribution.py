"""The parts of the OCI distribution specification that releases need: manifests, tags, referrers.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from qpack.core.errors import RegistryError
from registry.core import documents
from registry.core.codes import CHANGED_MEANWHILE, DAMAGED_CONTENT, FOREIGN_CONTENT, TOO_LARGE, TOO_MANY
from registry.core.documents import Document
from registry.core.modelpack import DIGEST, INDEX_TYPE, MANIFEST_TYPE, canonical, digest_of
from registry.core.protocol import is_name, is_tag
from registry.oci.http import MOST_BYTES, Answer, Body, Http, Request

_ACCEPT = ", ".join((MANIFEST_TYPE, INDEX_TYPE))
_MOST_PAGES = 1000
_MOST_LISTED = 100_000


@dataclass(frozen=True)
class Repository:
    """One repository of a registry; `name` is its full name."""

    http: Http
    name: str

    @property
    def path(self) -> str:
        """The base path of its API."""
        return f"/v2/{self.name}"

    def ask(
        self,
        method: str,
        path: str,
        *,
        push: bool = False,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
    ) -> Answer:
        """A request below the repository; see `Http.ask`."""
        return self.http.ask(
            Request(method, f"{self.path}/{path}", self.name, push=push, headers=headers or {}, body=body)
        )

    def manifest(self, reference: str) -> bytes | None:
        """The manifest at a tag or digest, or None. One at a digest is checked against it."""
        answer = self.ask("GET", f"manifests/{reference}", headers={"Accept": _ACCEPT})
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise self.http.refused(answer, f"to send {self.name}@{reference}")
        if reference.startswith("sha256:") and digest_of(answer.body) != reference:
            raise RegistryError(
                DAMAGED_CONTENT,
                f"{self.http.host} sent another manifest than {self.name}@{reference}",
                hint="The registry's copy is damaged, or a proxy changed it.",
            )
        return answer.body

    def digest(self, tag: str) -> str | None:
        """The digest of the manifest at a tag, or None."""
        answer = self.ask("HEAD", f"manifests/{tag}", headers={"Accept": _ACCEPT})
        if answer.status == 404:
            return None
        found = str(answer.headers.get("docker-content-digest", ""))
        if answer.status == 200 and DIGEST.fullmatch(found):
            return found
        # The header is optional.
        body = self.manifest(tag)
        return None if body is None else digest_of(body)

    def put_manifest(self, reference: str, data: bytes, media_type: str = MANIFEST_TYPE) -> Answer:
        """Write a manifest at a tag or at its own digest. An existing tag moves."""
        if len(data) > MOST_BYTES:
            raise RegistryError(
                TOO_LARGE,
                f"the manifest has {len(data):,} bytes; registries accept {MOST_BYTES:,}",
                hint="Publish fewer files, for example larger shards.",
            )
        answer = self.ask("PUT", f"manifests/{reference}", push=True, headers={"Content-Type": media_type}, body=data)
        if answer.status != 201:
            raise self.http.refused(answer, f"the manifest of {self.name}:{reference}")
        return answer

    def delete(self, digest: str) -> None:
        """Delete a manifest by digest. Raises RegistryError if the registry doesn't support it, as many don't."""
        answer = self.ask("DELETE", f"manifests/{digest}", push=True)
        if answer.status not in (200, 202, 204, 404):
            hint = ""
            if answer.status in (400, 405, 501):
                hint = "This registry doesn't support deletion by API: ask its operator."
            raise self.http.refused(answer, f"to delete {self.name}@{digest[:19]}", hint)

    def tags(self) -> tuple[str, ...]:
        """Every valid tag, sorted; empty for an unknown repository."""
        found = set(_pages(self.http, f"{self.path}/tags/list?n=1000", self.name, "tags"))
        return tuple(sorted(filter(is_tag, found)))

    def referrers(self, digest: str) -> tuple[str, ...]:
        """The digests of the manifests that refer to one: from the registry, or from the fallback tag."""
        answer = self.ask("GET", f"referrers/{digest}", headers={"Accept": INDEX_TYPE})
        if answer.status == 200 and answer.headers.get("content-type", "").startswith(INDEX_TYPE):
            return _digests(answer.body)
        body = self.manifest(fallback_tag(digest))
        return () if body is None else _digests(body)

    def attach(self, data: bytes) -> str:
        """Write a manifest with a `subject`, so that it is listed in the subject's referrers, and return its digest.

        Its blobs have to exist. For a registry without the referrers API (no `OCI-Subject` in the answer), the list at
        the fallback tag is read, extended, and read again: if a concurrent writer removed the entry, it is added again.
        """
        value = json.loads(data)
        subject, digest = value["subject"]["digest"], digest_of(data)
        answer = self.put_manifest(digest, data, value.get("mediaType", MANIFEST_TYPE))
        if answer.headers.get("oci-subject"):
            return digest
        entry = {"mediaType": value.get("mediaType", MANIFEST_TYPE), "digest": digest, "size": len(data)}
        config = value.get("config")
        kind = value.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
        entry["artifactType"] = str(kind or "")
        if value.get("annotations"):
            entry["annotations"] = value["annotations"]
        tag = fallback_tag(subject)
        for _ in range(5):
            body = self.manifest(tag)
            known = [] if body is None else list(_descriptors(body))
            if any(item.get("digest") == digest for item in known):
                return digest
            index: Document = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [*known, entry]}
            self.put_manifest(tag, canonical(index), INDEX_TYPE)
        raise RegistryError(
            CHANGED_MEANWHILE, f"{self.name}:{tag} is being changed by other writers", hint="Run the command again."
        )


def fallback_tag(digest: str) -> str:
    """The tag that lists a manifest's referrers in registries without the referrers API."""
    return digest.replace(":", "-")


def catalog(http: Http) -> tuple[str, ...]:
    """Every repository of a registry. Raises RegistryError if it doesn't list them, as many don't."""
    return tuple(sorted(filter(is_name, set(_pages(http, "/v2/_catalog?n=1000", "", "repositories")))))


def _pages(http: Http, path: str, repository: str, key: str) -> Iterator[str]:
    """The strings of a paginated list (`Link: <...>; rel="next"`, RFC 5988)."""
    count = 0
    for _ in range(_MOST_PAGES):
        answer = http.ask(Request("GET", path, repository))
        if answer.status == 404 and repository:
            return
        if answer.status != 200:
            raise http.refused(answer, f"to list the {key}")
        try:
            page = documents.parse(answer.body)[key] or ()
            if not isinstance(page, list | tuple) or not all(isinstance(item, str) for item in page):
                raise TypeError(key)
        except (ValueError, LookupError, TypeError) as error:
            raise http.refused(answer, f"to list the {key} ({type(error).__name__})") from error
        count += len(page)
        if count > _MOST_LISTED:
            break
        yield from page
        link = answer.headers.get("link", "")
        if 'rel="next"' not in link:
            return
        try:
            following = urlsplit(link.partition("<")[2].partition(">")[0])
        except ValueError as error:
            raise http.refused(answer, f"to name the next page of {key}") from error
        path = quote(following.path, safe="/%") + (f"?{following.query}" if following.query else "")
    raise RegistryError(
        TOO_MANY, f"{http.host} has too many {key} to list", hint="Use a full reference with a version."
    )


def _digests(index: bytes) -> tuple[str, ...]:
    return tuple(str(item["digest"]) for item in _descriptors(index))


def _descriptors(body: bytes) -> tuple[Document, ...]:
    try:
        items = documents.parse(body)["manifests"]
        if not isinstance(items, list):
            raise TypeError("manifests are not a list")
        return tuple(item for item in items if isinstance(item, dict) and DIGEST.fullmatch(str(item.get("digest"))))
    except (ValueError, LookupError, TypeError) as error:
        raise RegistryError(
            FOREIGN_CONTENT, "the list of referrers can't be read", hint="Another program may have used its tag."
        ) from error
