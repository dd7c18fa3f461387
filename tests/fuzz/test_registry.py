"""Registries by strangers, and registries that a disk damaged: the right answer, or an error that says where."""

from __future__ import annotations

import gzip
import http.server
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http, close_session
from hypothesis import given
from hypothesis import strategies as st

from qpack.pipeline.find import read_release
from qpack.pipeline.rejudge import rejudge
from registry.core import modelpack
from registry.core.bundle import pack
from registry.core.protocol import AliasMove, PushRequest, Ref
from registry.hub.registry import HubRegistry
from registry.lifecycle import verification
from registry.local.changes import Author
from registry.local.index import CHECKSUM, UNSEALED, Index
from registry.local.registry import LocalRegistry
from registry.oci.http import Http
from registry.oci.registry import OciRegistry
from registry.registries import open_oci
from tests.contract import hub_server
from tests.contract.oci_server import http_server
from tests.contract.registries_contract import FILES, contents, write
from tests.fuzz import strategies_registry as near
from tests.fuzz.law import fuzz, refused_or_read
from tests.fuzz.mutations import documents
from tests.unit.laid_out import publish


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> LocalRegistry:
    """Two releases that verify, an alias and a signature."""
    scratch = tmp_path_factory.mktemp("fuzzed-registry")
    local = LocalRegistry(scratch / "registry")
    for number in (1, 2):
        publish(local, "m", scratch / f"made-{number}", number)
    local.alias(AliasMove("m", "production", "1", actor="me"))
    local.attach("m:1", b"a signature", media_type="x/sig", annotations={}, by=Author("me"))
    return local


@contextmanager
def as_it_was(local: LocalRegistry) -> Iterator[LocalRegistry]:
    """The registry for the block; then it gets its index, its history and its blobs back."""
    kept = {path: path.read_bytes() for path in (local.root / "index.json", local.root / "history.jsonl")}
    names = {path.name for path in (local.root / "blobs" / "sha256").iterdir()}
    try:
        yield local
    finally:
        for path, data in kept.items():
            path.write_bytes(data)
        for path in (local.root / "blobs" / "sha256").iterdir():
            if path.name not in names:
                path.unlink()


def reads(local: LocalRegistry) -> dict[str, Callable[[], Any]]:
    """What commands ask of a registry."""
    return {
        "list": local.list,
        "history": local.history,
        "aliases": lambda: local.aliases("m"),
        "show": lambda: read_release(local.root, "m:production"),
        "verify": lambda: verification.verify(local, "m", rejudge),
        "signature": lambda: local.attached("m:1", "x/sig"),
    }


@pytest.fixture(scope="module")
def right(made: LocalRegistry) -> dict[str, Any]:
    """The answers of the registry as it was made."""
    return {name: ask() for name, ask in reads(made).items()}


@given(data=st.data())
@fuzz
def test_a_damaged_index_gives_the_right_answer_or_none(
    made: LocalRegistry, right: dict[str, Any], data: st.DataObject
) -> None:
    path = made.root / "index.json"
    document = data.draw(documents(json.loads(path.read_bytes())))
    with as_it_was(made):
        path.write_bytes(document)
        with suppress(ValueError, TypeError, AttributeError, RecursionError):
            # Without its type, or with an empty checksum, it is one that somebody wrote on purpose.
            value = json.loads(document)
            if "artifactType" not in value or (value.get("annotations") or {}).get(CHECKSUM) == UNSEALED:
                return
        for name, ask in reads(made).items():
            found = refused_or_read(ask, where=str(made.root))
            assert found is None or found == right[name], name


@given(document=st.one_of(near.indexes, near.sealed_indexes))
@fuzz
def test_an_index_is_refused_by_name_or_read_and_written_again(document: bytes) -> None:
    found = refused_or_read(lambda: Index.from_json(document, "index.json"), where="index.json")
    if found is not None:
        assert Index.from_json(found.to_json(), "index.json") == found


@given(data=st.data())
@fuzz
def test_whatever_an_index_says_every_command_ends_with_an_answer_or_an_error(
    made: LocalRegistry, data: st.DataObject
) -> None:
    valid = near.unsealed(json.loads((made.root / "index.json").read_bytes()))
    with as_it_was(made):
        (made.root / "index.json").write_bytes(data.draw(documents(valid)))
        for ask in reads(made).values():
            refused_or_read(ask)
        refused_or_read(lambda: made.collect(dry_run=True))
        refused_or_read(lambda: made.remove(Ref("m", "2"), drop_aliases=True, actor="me", note="why"))
        refused_or_read(made.history)


@given(document=near.histories)
@fuzz
def test_a_history_is_refused_by_line_or_read(made: LocalRegistry, document: bytes) -> None:
    with as_it_was(made):
        (made.root / "history.jsonl").write_bytes(document)
        refused_or_read(made.history, where="history.jsonl:")
        refused_or_read(lambda: made.alias(AliasMove("m", "staging", "1", actor="me")), where="history.jsonl")


@given(data=st.data())
@fuzz
def test_a_hostile_manifest_leads_nowhere_and_stops_nobody_else(
    made: LocalRegistry, data: st.DataObject, tmp_path: Path
) -> None:
    """As version `evil`, in the registry as another program copies it there."""
    valid = json.loads(made.blob(made.resolve("m:1").digest).read_bytes())
    document = data.draw(st.one_of(documents(valid), near.manifests))
    with as_it_was(made):
        digest = modelpack.digest_of(document)
        made.blob(digest).write_bytes(document)
        index = near.unsealed(json.loads((made.root / "index.json").read_bytes()))
        notes = {"org.opencontainers.image.ref.name": "m:evil", "org.qpack.version": "evil", modelpack.CREATED: "t"}
        index["manifests"].append({"digest": digest, "size": len(document), "annotations": notes})
        (made.root / "index.json").write_text(json.dumps(index))
        dest = tmp_path / "out" / "pulled"
        shutil.rmtree(dest.parent, ignore_errors=True)
        refused_or_read(lambda: made.pull("m:evil", dest))
        assert {path.name for path in tmp_path.iterdir()} <= {"out"}
        if dest.exists():
            listed = modelpack.read_manifest(document, "it").files
            assert set(contents(dest)) == {record.path for record in listed}
        for ask in (
            lambda: made.bundle("m:evil"),
            lambda: verification.verify(made, "m:evil", rejudge),
            lambda: read_release(made.root, "m:evil"),
            made.list,
        ):
            refused_or_read(ask)
        needed = {record.sha256 for record in made.contents("m:1").files}
        collected = refused_or_read(lambda: made.collect(dry_run=True))
        assert collected is not None, "a collection goes on"
        assert not needed & {blob.removeprefix("sha256:") for blob in collected.blobs}
        assert verification.verify(made, "m:1", rejudge).ok
        gone = refused_or_read(lambda: made.remove(Ref("m", "evil"), drop_aliases=False, actor="me", note="evil"))
        assert gone is not None, "and it can be removed"


# An OCI registry by a stranger


class Answers:
    """What the server says, by the last parts of a path; None is 404."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}


@pytest.fixture(scope="module")
def stranger() -> Iterator[tuple[OciRegistry, Answers]]:
    """A server that answers whatever it is told, and a registry that asks it without waiting between tries."""
    told = Answers()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            body = next((body for end, body in told.bodies.items() if path.endswith(end)), None)
            self.send_response(200 if body is not None else 404)
            for name, value in told.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body or b"")))
            self.end_headers()
            if self.command == "GET":
                with suppress(OSError):
                    self.wfile.write(body or b"")

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http_server(Handler) as host, closing(open_oci(host, plain_http=True)) as found:
        way = Http(found.http.host, found.http.plain, found.http.client, found.http.authority, wait=lambda _: None)
        yield OciRegistry(way), told


@given(data=st.data())
@fuzz
def test_a_registry_by_a_stranger_is_read_or_refused(
    stranger: tuple[OciRegistry, Answers], data: st.DataObject, tmp_path: Path
) -> None:
    oci, told = stranger
    packed = pack(write(tmp_path / "release", FILES), near.NOTES)
    files = {f"blobs/sha256:{r.sha256}": packed.source(r).read_bytes() for r in packed.contents.files}
    told.bodies = {
        **files,
        f"blobs/{packed.contents.config_digest}": packed.config,
        "tags/list": b'{"tags": ["1", "latest"]}',
        "_catalog": b'{"repositories": ["m"]}',
        "manifests/1": packed.manifest,
        "manifests/latest": packed.manifest,
        f"manifests/{packed.digest}": packed.manifest,
    }
    what = data.draw(st.sampled_from(("manifest", "manifest", "tags/list", "_catalog", "config", "referrers", "blob")))
    if what == "manifest":
        document = data.draw(documents(json.loads(packed.manifest)))
        told.bodies |= {"manifests/1": document, "manifests/latest": document}
        told.bodies[f"manifests/{modelpack.digest_of(document)}"] = document
    elif what == "referrers":
        told.bodies[f"referrers/{packed.digest}"] = data.draw(near.referrer_lists)
        told.headers = {"content-type": modelpack.INDEX_TYPE}
    elif what == "config":
        told.bodies[f"blobs/{packed.contents.config_digest}"] = data.draw(near.configs)
    elif what == "blob":
        told.bodies[next(iter(files))] = data.draw(st.binary(max_size=64))
    else:
        told.bodies[what] = data.draw(near.tag_lists if what == "tags/list" else near.catalogs)
    before = sorted(path.name for path in tmp_path.iterdir())
    dest = tmp_path / "pulls" / "pulled"
    shutil.rmtree(dest.parent, ignore_errors=True)
    refused_or_read(lambda: oci.resolve("m:1"))
    refused_or_read(lambda: oci.list("m"))
    refused_or_read(oci.list)
    refused_or_read(lambda: oci.pull("m:1", dest))
    refused_or_read(lambda: oci.fetch_bundle("m", tmp_path / "pulls" / "fetched"))
    refused_or_read(lambda: oci.remove(Ref("m", "1"), drop_aliases=True, actor="me", note="why"))
    told.headers = {}
    if dest.exists():
        listed = modelpack.read_manifest(told.bodies["manifests/1"], "it").files
        assert {path: modelpack.digest_of(body) for path, body in contents(dest).items()} == {
            record.path: f"sha256:{record.sha256}" for record in listed
        }
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "pulls") == [
        name for name in before if name != "pulls"
    ], "nothing is written outside"


# A Hub by a stranger


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[hub_server.Hub, str]]:
    """A release on a Hub, whose answers a test may change; and the release's commit."""
    kept = {name: os.environ.get(name) for name in ("HF_TOKEN",)}
    xet, cache, sleep = constants.HF_HUB_DISABLE_XET, constants.HF_HUB_CACHE, _http.time.sleep
    os.environ["HF_TOKEN"] = hub_server.TOKEN
    scratch = tmp_path_factory.mktemp("hub")
    constants.HF_HUB_DISABLE_XET, constants.HF_HUB_CACHE = True, str(scratch / "cache")
    with hub_server.serving() as server:
        there = HubRegistry(endpoint=server.url, wait=lambda _: None)
        there.put(pack(write(scratch / "release", FILES), near.NOTES), PushRequest("org/m", "1", None, actor="me"))
        _http.time.sleep = lambda _: None
        yield server, server.repositories["org/m"].tags["1"]
    constants.HF_HUB_DISABLE_XET, constants.HF_HUB_CACHE, _http.time.sleep = xet, cache, sleep
    for name, value in kept.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value
    close_session()


def asked(server: hub_server.Hub, path: str) -> bytes:
    """What the server answers a GET of its API."""
    headers = {"authorization": f"Bearer {hub_server.TOKEN}"}
    return httpx.get(f"{server.url}{path}", headers=headers).content


@given(data=st.data())
@fuzz
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_hub_by_a_stranger_is_read_or_refused(
    hub: tuple[hub_server.Hub, str], data: st.DataObject, tmp_path: Path
) -> None:
    server, commit = hub
    there = HubRegistry(endpoint=server.url, wait=lambda _: None)
    path = data.draw(
        st.sampled_from(
            (
                "/api/models/org/m",
                "/api/models/org/m/revision/1",
                "/api/models/org/m/revision/main",
                "/api/models/org/m/refs",
                f"/api/models/org/m/tree/{commit}",
                f"/api/models/org/m/paths-info/{commit}",
                "/api/whoami-v2",
                f"/org/m/resolve/{commit}/qpack/manifest.json",
                f"/org/m/resolve/{commit}/qpack/config.json",
            )
        )
    )
    if "/paths-info/" in path:
        valid = json.loads(asked(server, f"/api/models/org/m/tree/{commit}"))[:2]
    else:
        valid = json.loads(asked(server, path))
    dest = tmp_path / "pulls" / "pulled"
    shutil.rmtree(dest.parent, ignore_errors=True)
    server.answers = {path: data.draw(documents(valid))}
    try:
        refused_or_read(lambda: there.resolve("org/m:1"))
        refused_or_read(lambda: there.list("org/m"))
        refused_or_read(lambda: there.pull("org/m:1", dest))
        refused_or_read(lambda: there.fetch_bundle("org/m", tmp_path / "pulls" / "fetched"))
        packed = pack(write(tmp_path / "pulls" / "release", FILES), near.NOTES)
        refused_or_read(lambda: there.put(packed, PushRequest("org/m", "1", None, actor="me")))
    finally:
        server.answers = {}
    if dest.exists():
        assert contents(dest) == FILES
    assert {path.name for path in tmp_path.iterdir()} <= {"pulls"}


@pytest.mark.parametrize("packed", [False, True])
def test_a_hub_whose_answers_never_end_is_refused(hub: tuple[hub_server.Hub, str], packed: bool) -> None:
    """A list of 40 MB, and one that is 40 kB on the way."""
    server, _ = hub
    there = HubRegistry(endpoint=server.url, wait=lambda _: None)
    body = b'{"tags": [' + b"[]," * 14_000_000 + b"[]]}"
    server.answers = {"/api/models/org/m/refs": gzip.compress(body) if packed else body}
    server.packed = packed
    try:
        assert refused_or_read(lambda: there.resolve("org/m:1"), where="larger than") is None
    finally:
        server.answers, server.packed = {}, False
