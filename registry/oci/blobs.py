"""Blobs of an OCI repository: existence, mounts, chunked uploads, downloads from an offset.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-a-blob-in-chunks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit, urlunsplit

from qpack.core.errors import RegistryError
from qpack.core.hashing import open_regular
from registry.core.codes import DAMAGED_CONTENT, UNREACHABLE
from registry.core.transfers import Counter
from registry.oci.distribution import Repository
from registry.oci.http import TRANSIENT, TRIES, Answer, Request, Unreachable

PIECE_BYTES = 64 * 1024 * 1024
_LEAST_PIECE = 4 * 1024 * 1024
_BLOCK = 1024 * 1024


@dataclass(frozen=True)
class Sessions:
    """Unfinished uploads, one small file each, so that the next process can resume them.

    The files are private: anyone with an upload's address and a login could append to it.
    """

    folder: Path | None

    def _path(self, repository: Repository, digest: str) -> Path | None:
        if self.folder is None:
            return None
        key = f"{repository.http.base}/{repository.name}@{digest}"
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.json"

    def get(self, repository: Repository, digest: str) -> str | None:
        """The address of an unfinished upload, or None."""
        path = self._path(repository, digest)
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            return str(json.loads(path.read_bytes())["location"]) if path else None
        return None

    def put(self, repository: Repository, digest: str, location: str) -> None:
        """Record the address of an upload. If this is lost, the upload restarts."""
        if path := self._path(repository, digest):
            with contextlib.suppress(OSError):
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                part = path.with_suffix(".part")
                part.touch(mode=0o600)
                part.write_text(json.dumps({"location": location}))
                part.replace(path)

    def drop(self, repository: Repository, digest: str) -> None:
        """Remove the record of an upload that is finished or gone."""
        if path := self._path(repository, digest):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Blobs:
    """The blobs of `repository`. `mount_from` are repositories of the same registry to mount blobs from."""

    repository: Repository
    sessions: Sessions
    mount_from: tuple[str, ...] = ()

    def has(self, digest: str) -> bool:
        """Whether the blob exists."""
        answer = self.repository.ask("HEAD", f"blobs/{digest}")
        return answer.status == 200

    def send(self, digest: str, source: Path, size: int, counter: Counter) -> None:
        """Upload a file, unless its blob exists or can be mounted.

        The registry checks the digest. Raises RegistryError if it refuses, or the file doesn't match the digest.
        """
        if self.has(digest) or any(self._mounted(digest, other) for other in self.mount_from):
            counter.moved(size)
            return
        for last in (False, True):
            answer = self._upload(digest, source, size, counter)
            self.sessions.drop(self.repository, digest)
            if answer.status == 201 or self.has(digest):
                return
            if last or answer.status not in (400, 404, 416):
                raise self._refused(answer, digest, source)
            # The part from an earlier process may be damaged: restart.
            counter.moved(-size)

    def send_bytes(self, data: bytes, digest: str) -> None:
        """Upload a small blob, unless it exists."""
        if self.has(digest):
            return
        answer = self._finish(self._begin(), digest, data)
        if answer.status != 201 and not self.has(digest):
            raise self.repository.http.refused(answer, f"a blob of {self.repository.name}")

    @contextlib.contextmanager
    def chunks(self, digest: str, offset: int, what: str) -> Iterator[Iterator[bytes]]:
        """The blob's content from `offset`. The caller checks the digest."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        path = f"{self.repository.path}/blobs/{digest}"
        with self.repository.http.stream(path, self.repository.name, headers) as response:
            if response.status_code not in (200, 206):
                answer = Answer(response.status_code, response.headers, b"", "")
                raise self.repository.http.refused(answer, f"to send {what}", "Publish the same release again.")
            pieces = response.iter_raw()
            if offset and response.status_code == 200:
                # The server ignores ranges: skip the part that is here.
                pieces = _without_first(pieces, offset)
            yield pieces

    def _mounted(self, digest: str, other: str) -> bool:
        path = f"{self.repository.path}/blobs/uploads/?mount={digest}&from={other}"
        request = Request("POST", path, self.repository.name, push=True, mounts=(other,))
        answer = self.repository.http.ask(request)
        if answer.status == 202:
            # Not mounted: the registry started an upload instead.
            self.sessions.put(self.repository, digest, self._location(answer))
        return answer.status == 201

    def _begin(self) -> str:
        answer = self.repository.ask("POST", "blobs/uploads/", push=True)
        if answer.status != 202:
            raise self.repository.http.refused(answer, f"uploads to {self.repository.name}")
        return self._location(answer)

    def _upload(self, digest: str, source: Path, size: int, counter: Counter) -> Answer:
        location, offset = self._where_it_ended(digest, size)
        if offset:
            counter.moved(offset)
        piece, failed = PIECE_BYTES, 0
        while offset < size:
            end = min(offset + piece, size)
            try:
                answer = self._patch(location, source, offset, end, counter)
                if answer.status in TRANSIENT:
                    raise Unreachable(UNREACHABLE, f"HTTP {answer.status}")
            except Unreachable as error:
                failed += 1
                if failed >= TRIES:
                    raise Unreachable(
                        UNREACHABLE,
                        f"the connection to {self.repository.http.host} broke during {source.name} ({error.what})",
                        hint="Run the command again: it resumes the upload.",
                    ) from None
                self.repository.http.wait(0.5 * 2**failed)
                before = offset
                location, offset = self._where_it_ended(digest, size)
                counter.moved(offset - before)
                continue
            if answer.status == 413 and piece > _LEAST_PIECE:
                piece //= 2
                continue
            if answer.status not in (201, 202, 204):
                counter.moved(size - offset)
                return answer
            location, failed = self._location(answer), 0
            self.sessions.put(self.repository, digest, location)
            counter.moved(end - offset)
            offset = end
        return self._finish(location, digest, b"")

    def _patch(self, location: str, source: Path, offset: int, end: int, counter: Counter) -> Answer:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{offset}-{end - 1}",
            "Content-Length": str(end - offset),
        }
        http, name = self.repository.http, self.repository.name

        def body() -> Iterator[bytes]:
            for block in _read(source, offset, end):
                # Raises if all transfers shall stop: a piece can take minutes.
                counter.moved(0)
                yield block

        return http.ask(Request("PATCH", location, name, push=True, headers=headers, body=body, tries=1))

    def _finish(self, location: str, digest: str, rest: bytes) -> Answer:
        parts = urlsplit(location)
        query = f"{parts.query}&digest={digest}" if parts.query else f"digest={digest}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(rest))}
        url = urlunsplit(parts._replace(query=query))
        request = Request("PUT", url, self.repository.name, push=True, headers=headers, body=rest)
        return self.repository.http.ask(request)

    def _where_it_ended(self, digest: str, size: int) -> tuple[str, int]:
        """The address of the upload and its size so far; a new upload if the old one is gone."""
        if location := self.sessions.get(self.repository, digest):
            answer = self.repository.http.ask(Request("GET", location, self.repository.name, push=True))
            held = answer.headers.get("range", "").removeprefix("bytes=").partition("-")[2]
            if answer.status in (202, 204) and held.isdecimal() and int(held) < size:
                # Registries report an empty upload as `0-0`.
                return self._location(answer, location), int(held) + 1 if int(held) else 0
        location = self._begin()
        self.sessions.put(self.repository, digest, location)
        return location, 0

    def _location(self, answer: Answer, otherwise: str = "") -> str:
        """The absolute address to continue the upload at."""
        found = str(answer.headers.get("location", otherwise))
        if not found:
            raise self.repository.http.refused(answer, "to name the address of the upload")
        return urljoin(answer.url, found)

    def _refused(self, answer: Answer, digest: str, source: Path) -> RegistryError:
        with open_regular(source) as file:
            if f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" != digest:
                return RegistryError(
                    DAMAGED_CONTENT,
                    f"{source} is damaged: its content is not {digest}",
                    hint="Publish the release again to the registry it comes from: that repairs it. Check the disk.",
                )
        return self.repository.http.refused(answer, f"a file of {self.repository.name}")


def _read(source: Path, offset: int, end: int) -> Iterator[bytes]:
    with open_regular(source) as file:
        file.seek(offset)
        while offset < end and (block := file.read(min(_BLOCK, end - offset))):
            offset += len(block)
            yield block


def _without_first(pieces: Iterator[bytes], count: int) -> Iterator[bytes]:
    for piece in pieces:
        if count < len(piece):
            yield piece[count:]
        count = max(0, count - len(piece))
