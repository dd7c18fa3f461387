"""A conformance server for the huggingface_hub client: the part of the Hub's HTTP API that publishing and pulling use.

It keeps git-like state (commits with parents, branches, tags, large files by SHA-256) and can fail at any request. It
was written from the client's own source: it shows that qpack keeps the client's contract, and says nothing about the
Hub itself.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import http.server
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.contract.oci_server import http_server

USER, ORG, TOKEN, READ_TOKEN = "me", "org", "hf_PLANTED9f3cToken", "hf_PLANTEDreadonly"


@dataclass(frozen=True)
class Commit:
    """A commit: its files as (path, (content's SHA-256, whether it is a large file))."""

    parent: str | None
    message: str
    files: tuple[tuple[str, tuple[str, bool]], ...]

    @property
    def oid(self) -> str:
        return hashlib.sha1(repr((self.parent, self.message, self.files)).encode()).hexdigest()


@dataclass
class Repository:
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    proposals: list[Commit] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def add(self, commit: Commit, branch: str = "main") -> str:
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit.oid

    def find(self, revision: str) -> str | None:
        found = self.branches.get(revision) or self.tags.get(revision)
        return found or (revision if revision in self.commits else None)

    def trail(self, branch: str = "main") -> list[str]:
        """The messages on a branch, newest first."""
        found, at = [], self.branches.get(branch)
        while at is not None:
            found.append(self.commits[at].message)
            at = self.commits[at].parent
        return found


@dataclass
class Fault:
    """What goes wrong at the next request like this: `how` is a status, or one of drop-before, drop-after, truncate."""

    method: str
    path: str
    how: int | str
    times: int = 1


@dataclass
class Hub:
    """The server's state. `requests` are those that came, `faults` those to come; `answers` replace its own, by path,
    and are said to be gzip if `packed`.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    small: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    answers: dict[str, bytes] = field(default_factory=dict)
    collections: dict[str, list[str]] = field(default_factory=dict)
    packed: bool = False

    def content(self, key: str, large: bool) -> bytes:
        return self.large[key] if large else self.small[key]

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[name]
        commit = repository.commits[str(repository.find(revision))]
        return {path: self.content(*at) for path, at in commit.files}


class _Answer(Exception):
    def __init__(self, status: int, body: object = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.headers = status, headers or {}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


def _gone(code: str) -> _Answer:
    return _Answer(404, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        path = unquote(urlsplit(self.path).path)
        self.query = parse_qs(urlsplit(self.path).query)
        self.hub.requests.append(f"{self.command} {path}")
        fault = next((f for f in self.hub.faults if self.command == f.method and fnmatch.fnmatch(path, f.path)), None)
        if fault is not None:
            fault.times -= 1
            if fault.times == 0:
                self.hub.faults.remove(fault)
        how = fault.how if fault else None
        if how == "drop-before":
            return self._drop()
        if isinstance(how, int):
            headers = {"Retry-After": "1"} if how == 429 else {}
            return self._send(_Answer(how, {"error": f"planted {how}, not with {TOKEN}"}, headers), None)
        try:
            answer = self._route(path, body)
        except _Answer as found:
            answer = found
        if how == "drop-after":
            return self._drop()
        if path in self.hub.answers:
            packed = {"content-encoding": "gzip"} if self.hub.packed else {}
            answer = _Answer(answer.status, self.hub.answers[path], {**answer.headers, **packed})
        return self._send(answer, how)

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, answer: _Answer, how: object) -> None:
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            self.send_header(key, value)
        self.send_header("content-length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            cut = how == "truncate"
            with suppress(ConnectionError):
                self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
            if cut:
                self._drop()

    # The API

    def _route(self, path: str, body: bytes) -> _Answer:
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if path.startswith("/lfs/"):
            if hashlib.sha256(body).hexdigest() != path.removeprefix("/lfs/"):
                raise _Answer(400, {"error": "not that content"})
            self.hub.large[path.removeprefix("/lfs/")] = body
            return _Answer(200, {})
        if token not in (TOKEN, READ_TOKEN):
            raise _Answer(401, {"error": "Invalid credentials"})
        if path == "/api/whoami-v2":
            role = "read" if token == READ_TOKEN else "write"
            orgs = [{"name": ORG, "roleInOrg": "write"}, {"name": "others", "roleInOrg": "read"}]
            auth = {"type": "access_token", "accessToken": {"displayName": "t", "role": role}}
            return _Answer(200, {"type": "user", "name": USER, "orgs": orgs, "auth": auth})
        if path == "/api/validate-yaml":
            return _Answer(200, {"errors": [], "warnings": []})
        if self.command in ("POST", "PUT") and token == READ_TOKEN and "/paths-info/" not in path:
            raise _Answer(403, {"error": "Forbidden"})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/api/collections/(.+)/items?", path):
            self.hub.collections.setdefault(found[1], []).append(json.loads(body)["item"]["id"])
            return _Answer(200, {"slug": found[1], "title": "t", "owner": {"name": ORG}, "items": [],
                                 "lastUpdated": "2026-11-30T00:00:00.000Z", "position": 0, "private": False,
                                 "theme": "blue", "upvotes": 0})  # fmt: skip
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body))
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(*found.groups())
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w[\w-]*)(?:/([^/]+))?)?", path)
        if found is None or found[1] not in self.hub.repositories:
            raise _gone("RepoNotFound")
        repository = self.hub.repositories[found[1]]
        what, revision = found[2] or "revision", found[3] or "main"
        if what == "branch":
            if revision in repository.branches:
                raise _Answer(409, {"error": "Reference already exists"})
            start = repository.find(json.loads(body).get("startingPoint", "main"))
            if start is None:
                raise _gone("RevisionNotFound")
            repository.branches[revision] = start
            return _Answer(200, {})
        commit = repository.find(revision)
        if commit is None:
            raise _gone("RevisionNotFound")
        files = dict(repository.commits[commit].files)
        if what == "revision":
            siblings = [{"rfilename": name} for name in files]
            about = {"id": found[1], "modelId": found[1], "sha": commit, "private": repository.private}
            return _Answer(200, {**about, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})
        if what == "refs":
            lists = {"branches": ("heads", repository.branches), "tags": ("tags", repository.tags)}
            shown = {
                key: [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c} for n, c in sorted(refs.items())]
                for key, (kind, refs) in lists.items()
            }
            return _Answer(200, {**shown, "converts": []})
        if what == "tree":
            return _Answer(200, [self._entry(name, at) for name, at in sorted(files.items())])
        if what == "paths-info":
            asked = parse_qs(body.decode())["paths"]
            return _Answer(200, [self._entry(name, files[name]) for name in asked if name in files])
        if what == "preupload":
            return self._preupload(json.loads(body), files)
        if what == "commit":
            if revision not in repository.branches:
                raise _gone("RevisionNotFound")
            return self._commit(repository, revision, [json.loads(line) for line in body.splitlines()])
        if what == "settings":
            repository.settings.update(json.loads(body))
            return _Answer(200, {})
        if what == "tag":
            name = json.loads(body)["tag"]
            if name in repository.tags:
                raise _Answer(409, {"error": "Tag reference exists already"})
            repository.tags[name] = commit
            return _Answer(200, {})
        raise _Answer(404, {"error": path})

    def _create(self, asked: dict[str, Any]) -> _Answer:
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        if name in self.hub.repositories:
            raise _Answer(409, {"error": "You already created this model repo"})
        repository = self.hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
        key = self._keep(b"*.safetensors filter=lfs\n")
        repository.add(Commit(None, "initial commit", ((".gitattributes", (key, False)),)))
        return _Answer(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def _keep(self, data: bytes) -> str:
        key = hashlib.sha256(data).hexdigest()
        self.hub.small[key] = data
        return key

    def _entry(self, name: str, at: tuple[str, bool]) -> dict[str, Any]:
        data = self.hub.content(*at)
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": git}
        if at[1]:
            entry["lfs"] = {"oid": at[0], "size": len(data), "pointerSize": 134}
        return entry

    def _preupload(self, asked: dict[str, Any], files: dict[str, tuple[str, bool]]) -> _Answer:
        def one(file: dict[str, Any]) -> dict[str, Any]:
            large = file["path"].endswith(".safetensors") or file["size"] > 1_000_000
            there = files.get(file["path"])
            oid = None
            if there is not None:
                entry = self._entry(file["path"], there)
                oid = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
            mode = "lfs" if large else "regular"
            return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

        return _Answer(200, {"files": [one(file) for file in asked["files"]]})

    def _batch(self, asked: dict[str, Any]) -> _Answer:
        objects = []
        for item in asked["objects"]:
            action = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}?X-Amz-Signature=PLANTEDsigned"}}
            objects.append({**item, **({} if item["oid"] in self.hub.large else {"actions": action})})
        return _Answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repository: Repository, branch: str, lines: list[dict[str, Any]]) -> _Answer:
        header = next(line["value"] for line in lines if line["key"] == "header")
        head = repository.branches[branch]
        if header.get("parentCommit") not in (None, head):
            raise _Answer(412, {"error": "The expected parent commit is not the branch's head"})
        files = dict(repository.commits[head].files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = (self._keep(base64.b64decode(value["content"])), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    raise _Answer(400, {"error": "LFS pointer to a file that was not uploaded"})
                files[value["path"]] = (value["oid"], True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        made = Commit(head, header["summary"], tuple(sorted(files.items())))
        about: dict[str, Any] = {"success": True}
        if self.query.get("create_pr") == ["1"]:
            repository.proposals.append(made)
            oid = f"{len(repository.proposals):040x}"
            about["pullRequestUrl"] = f"{self.hub.url}/org/small/discussions/{len(repository.proposals)}"
        else:
            oid = repository.add(made, branch)
        return _Answer(200, {**about, "commitOid": oid, "commitUrl": f"{self.hub.url}/x/y/commit/{oid}"})

    def _resolve(self, name: str, revision: str, path: str) -> _Answer:
        if name not in self.hub.repositories:
            raise _gone("RepoNotFound")
        repository = self.hub.repositories[name]
        commit = repository.find(revision)
        if commit is None:
            raise _gone("RevisionNotFound")
        files = dict(repository.commits[commit].files)
        if path not in files:
            raise _gone("EntryNotFound")
        data = self.hub.content(*files[path])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{files[path][0]}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if asked is None:
            return _Answer(200, data, headers)
        start = int(asked[1])
        return _Answer(206, data[start:], {**headers, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})


@contextmanager
def serving() -> Iterator[Hub]:
    """Run the server for the block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with http_server(handler) as host:
        hub.url = f"http://{host}"
        yield hub
