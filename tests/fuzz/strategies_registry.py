"""What a registry is made of, near what qpack writes: index, history, manifests, configs, lists of a server."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from qpack.core.records import FileRecord
from registry.core import modelpack
from registry.core.protocol import Event, PushRequest
from registry.local import changes
from registry.local.index import CHECKSUM, UNSEALED, Index
from tests.fuzz.mutations import documents, json_lines

HEX = "0123456789abcdef"
RECORDS = tuple(
    FileRecord(path=path, size_bytes=size, sha256=HEX[size] * 64)
    for path, size in (("README.md", 1), ("model/config.json", 2), ("model/model.safetensors", 3))
)
NOTES = {modelpack.TITLE: "m", modelpack.CREATED: "2026-01-01T00:00:00Z", modelpack.VERDICT: "pass"}


def manifest() -> dict[str, Any]:
    """A release's manifest."""
    value: dict[str, Any] = json.loads(modelpack.manifest(RECORDS, modelpack.config(RECORDS, NOTES), NOTES))
    return value


def referrer(subject: str) -> dict[str, Any]:
    """A manifest that attaches a signature."""
    about = {"mediaType": modelpack.MANIFEST_TYPE, "digest": subject, "size": 7}
    value: dict[str, Any] = json.loads(modelpack.referrer(about, b"signature", "x/sig", {}))
    return value


def index() -> Index:
    """Two versions, aliases, an attachment, a version that was removed."""
    by = changes.Author("me", "why", "pass")
    found = Index()
    for number, alias in ((1, "latest"), (2, "latest"), (3, "production")):
        request = PushRequest("m", None, alias, actor="me", note="why")
        found = changes.publish(found, request, f"sha256:{HEX[number] * 64}", 7, "pass").index
    entry = found.entries[0]
    notes = {"org.qpack.subject": entry.digest}
    attached = {"mediaType": modelpack.MANIFEST_TYPE, "digest": "sha256:" + "e" * 64, "size": 3, "annotations": notes}
    found = changes.attach(found, entry, {**attached, "artifactType": "x/sig"}, by).index
    return changes.remove(found, changes.Ref("m", "2"), by, drop_aliases=True).index


def unsealed(value: dict[str, Any]) -> dict[str, Any]:
    """An index that says that somebody changed it on purpose."""
    return {**value, "annotations": {**value["annotations"], CHECKSUM: UNSEALED}}


def events() -> list[dict[str, Any]]:
    """Lines of a history."""
    about = {"who": "me", "name": "m", "digest": "sha256:" + "1" * 64}
    times = "2026-01-01T00:00:00.000Z"
    made = [
        Event(id="1" * 32, when=times, what="push", version="1", alias="latest", **about),
        Event(id="2" * 32, when=times, what="promote", version="1", alias="production", verdict="pass", **about),
        Event(id="3" * 32, when=times, what="remove", version="1", dropped=("latest",), note="why", **about),
    ]
    return [event.model_dump(mode="json") for event in made]


sealed_indexes = documents(json.loads(index().to_json()))
indexes = documents(unsealed(json.loads(index().to_json())))
manifests = st.one_of(documents(manifest()), documents(referrer("sha256:" + "1" * 64)))
configs = documents(json.loads(modelpack.config(RECORDS, NOTES)))
histories = json_lines(events())
tag_lists = documents({"name": "m", "tags": ["1", "2", "latest"]})
catalogs = documents({"repositories": ["m", "n"]})
referrer_lists = documents({"schemaVersion": 2, "manifests": [{"digest": "sha256:" + "e" * 64, "size": 3}]})
