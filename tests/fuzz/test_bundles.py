"""Statements, bills of materials and signatures by strangers: they are wrong with a reason, or right."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from hypothesis import given

import tests.unit.registry_examples as examples
from qpack.core.records import FileRecord
from registry.core import modelpack
from registry.lifecycle.signing import uncovered
from registry.release import provenance
from tests.fuzz.law import fuzz, refused_or_read
from tests.fuzz.mutations import documents

FILES = tuple(
    FileRecord(path=path, size_bytes=1, sha256=f"{number:064x}")
    for number, path in enumerate(("model/config.json", "model/model.safetensors", "release.json", "serving.json"))
)
RELEASE = examples.release(files=FILES[:2])
STATEMENT: dict[str, Any] = json.loads(provenance.render(RELEASE, FILES))
CONTENTS = modelpack.read_manifest(
    modelpack.manifest(FILES, modelpack.config(FILES, {}), {"org.opencontainers.image.title": "small"}), "it"
)
PREDICATE = {
    "_type": provenance.STATEMENT_TYPE,
    "predicateType": "https://model_signing/signature/v1.0",
    "predicate": {"resources": [{"name": r.path, "algorithm": "sha256", "digest": r.sha256} for r in FILES]},
}


def bundle(payload: bytes) -> bytes:
    """A sigstore bundle around a payload, unsigned: what is looked at before any key is."""
    envelope = {"payload": base64.b64encode(payload).decode(), "payloadType": "application/vnd.in-toto+json"}
    return json.dumps({"dsseEnvelope": {**envelope, "signatures": [{"sig": "", "keyid": ""}]}}).encode()


@fuzz
@given(document=documents(STATEMENT))
def test_a_statement_is_right_or_wrong_with_a_reason(document: bytes) -> None:
    wrong = refused_or_read(lambda: provenance.problems(document, RELEASE, FILES))
    assert wrong is not None
    if not wrong:
        # Nothing that is compared may be another; what isn't compared doesn't count.
        again = json.loads(document)
        assert again["subject"] == STATEMENT["subject"] or again == STATEMENT


@fuzz
@given(payload=documents(PREDICATE))
def test_a_signature_over_other_files_is_never_one_over_these(payload: bytes) -> None:
    missing = refused_or_read(lambda: uncovered(bundle(payload), CONTENTS))
    assert missing is not None
    assert all(isinstance(name, str) for name in missing)
    if not missing:
        signed = json.loads(payload)["predicate"]["resources"]
        assert {(r["name"], r["digest"]) for r in signed} == {(r.path, r.sha256) for r in FILES}


@fuzz
@given(document=documents(json.loads(bundle(json.dumps(PREDICATE).encode()))))
def test_a_damaged_bundle_covers_nothing_or_these_files(document: bytes) -> None:
    assert refused_or_read(lambda: uncovered(document, CONTENTS)) is not None


def test_the_examples_are_valid(tmp_path: Path) -> None:
    assert provenance.problems(json.dumps(STATEMENT).encode(), RELEASE, FILES) == []
    assert uncovered(bundle(json.dumps(PREDICATE).encode()), CONTENTS) == ()
