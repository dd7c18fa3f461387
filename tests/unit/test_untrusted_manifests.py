"""Indexes and manifests from elsewhere: whatever their bytes are, they are read or refused, and lead nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qpack.core.errors import RegistryError
from qpack.core.records import FileRecord
from registry.core import modelpack
from registry.core.files import confined
from registry.core.protocol import PushRequest
from registry.lifecycle.signing import uncovered
from registry.local import changes
from registry.local.blobs import Blobs
from registry.local.index import Index
from tests.codes import coded

ROOT = Path("/registry")
HOSTILE = st.sampled_from(
    [
        *("../../etc/passwd", "/etc/passwd", "sha256:../../../etc/passwd", "sha256:", "a/../b", "a\0b", "\ud800", "."),
        *(-1, 2**80, 1e400, True, None, "", "x" * 300, "sha256:" + "0" * 64, {"digest": {}}, [[]]),
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | HOSTILE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


def manifest() -> Any:
    records = tuple(FileRecord(path=path, size_bytes=1, sha256="ab" * 32) for path in ("a", "b/c"))
    return json.loads(modelpack.manifest(records, modelpack.config(records, {}), {"k": "v"}))


def index() -> Any:
    by = changes.Author("me", "why")
    made = changes.publish(Index(), PushRequest("m", None, "latest", actor="me"), "sha256:" + "1" * 64, 7)
    attached = {"mediaType": modelpack.MANIFEST_TYPE, "artifactType": "x", "digest": "sha256:" + "2" * 64, "size": 3}
    return json.loads(changes.attach(made.index, made.entry, attached, by).index.to_json())


def spoiled(value: Any, draw: st.DrawFn) -> bytes:
    """The document with one part, however deep, replaced by anything or taken away."""
    holder, key = value, draw(st.sampled_from(list(value)))
    while isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 3)):
        holder = holder[key]
        key = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else list(range(len(holder)))))
    if draw(st.booleans()):
        holder[key] = draw(VALUES)
    else:
        del holder[key]
    return json.dumps(value).encode()


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["bytes", "json", "manifest", "index"]))
    if kind == "bytes":
        return draw(st.binary(max_size=60))
    if kind == "json":
        return json.dumps(draw(VALUES)).encode()
    return spoiled(manifest() if kind == "manifest" else index(), draw)


@given(documents())
def test_whatever_a_manifest_says_is_refused_or_stays_inside(data: bytes) -> None:
    blobs = Blobs(ROOT)
    for need in modelpack.needs(data):
        inside(blobs, need.digest)
    for digest in modelpack.attached_to(data, "sha256:" + "1" * 64):
        inside(blobs, digest)
    try:
        contents = modelpack.read_manifest(data, "it")
    except RegistryError:
        return
    assert uncovered(data, contents)
    assert len({record.path for record in contents.files}) == len(contents.files)
    for digest in contents.blobs():
        assert blobs.path(digest).parent == blobs.folder
    for record in contents.files:
        assert record.size_bytes >= 0
        try:
            target = confined(ROOT / "release", record.path)
        except RegistryError:
            continue
        assert ROOT / "release" in target.parents


def to_example(key: str, value: Any) -> bytes:
    found = index()
    found["manifests"][-1][key] = value
    return json.dumps(found).encode()


def inside(blobs: Blobs, digest: str) -> None:
    try:
        path = blobs.path(digest)
    except RegistryError:
        return
    assert path.parent == blobs.folder


@given(documents())
@example(b'{"manifests": [{"": "\\ud800"}]}')
@example(to_example("size", 1e400))
def test_whatever_an_index_says_is_refused_or_can_be_written_again(data: bytes) -> None:
    try:
        read = Index.from_json(data, "index.json")
    except RegistryError:
        return
    assert Index.from_json(read.to_json(), "index.json") == read
    for entry in read.entries:
        assert Blobs(ROOT).path(entry.digest).parent == Blobs(ROOT).folder


@pytest.mark.parametrize("deep", [b"[" * 200_000, b'{"a":' * 200_000])
def test_what_is_nested_without_end_is_refused(deep: bytes) -> None:
    with pytest.raises(RegistryError):
        modelpack.read_manifest(deep, "it")
    with pytest.raises(RegistryError):
        Index.from_json(deep, "index.json")
    # To take it for nothing would let a collection remove what it needs.
    with pytest.raises(ValueError, match="nested"):
        modelpack.needs(deep)


def test_a_manifest_too_large_to_be_one_is_not_read_into_memory(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    blobs.folder.mkdir(parents=True)
    path = blobs.path("sha256:" + "3" * 64)
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(RegistryError, check=coded("too-large")):
        blobs.read("sha256:" + "3" * 64, "it", modelpack.LARGEST_MANIFEST)
