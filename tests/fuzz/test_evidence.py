"""Stored results and notes: a file that was damaged or written by something else is no result, and never an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.unit.registry_examples as examples
from qpack.core.records import Evidence, Quantized
from qpack.core.store import Store
from tests.fuzz.law import fuzz, refused_or_read
from tests.fuzz.mutations import RAW, documents
from tests.fuzz.test_releases import shortened

MADE = examples.release()
EVIDENCE: dict[str, Any] = {
    "result": shortened(MADE.artifact.model_dump(mode="json")),
    "seconds": 1.5,
    "inputs": {"stage": "evaluate", "model": "4" * 64},
}
QUANTIZED = {"result": MADE.quantized.model_dump(mode="json"), "seconds": 2.0, "inputs": {}}


def stored(home: Path, document: bytes) -> Store:
    """A store that holds this document as the result of the key `k`."""
    store = Store(home)
    folder = store.folder("evaluate", "k")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_bytes(document)
    return store


@fuzz
@given(document=documents(EVIDENCE))
def test_stored_evidence_is_read_or_counts_as_absent(document: bytes, tmp_path: Path) -> None:
    store = stored(tmp_path, document)
    entry = refused_or_read(lambda: store.get("evaluate", "k", Evidence))
    assert entry is None or (isinstance(entry.result, Evidence) and isinstance(entry.seconds, int | float))


@fuzz
@given(document=documents(QUANTIZED))
def test_a_stored_artifact_is_read_or_counts_as_absent(document: bytes, tmp_path: Path) -> None:
    store = stored(tmp_path, document)
    entry = refused_or_read(lambda: store.get("evaluate", "k", Quantized))
    assert entry is None or isinstance(entry.result, Quantized)


@pytest.mark.parametrize("kind", ["folder", "list", "number", "null", "deep", "no seconds", "bytes", "loop"])
def test_what_is_no_result_is_made_again(kind: str, tmp_path: Path) -> None:
    deep = max((raw.text for raw in RAW), key=len)
    texts = {"list": "[]", "number": "7", "null": "null", "deep": deep, "bytes": "\udcff\udcfe"}
    document = texts.get(kind, '{"result": {}, "inputs": {}}')
    store = stored(tmp_path, document.encode("utf-8", "surrogateescape"))
    file = store.folder("evaluate", "k") / "result.json"
    if kind in ("folder", "loop"):
        file.unlink()
        if kind == "folder":
            file.mkdir()
        else:
            file.symlink_to(file)
    assert store.get("evaluate", "k", Quantized) is None
    made = store.once("evaluate", "k", Quantized, lambda _: MADE.quantized, inputs={})
    assert not made.reused
    again = store.get("evaluate", "k", Quantized)
    assert again is not None
    assert again.result == MADE.quantized


@fuzz
@given(document=documents({"sha256": "ab" * 32, "size": 7, "mtime_ns": 3}))
def test_a_note_is_a_mapping_or_nothing(document: bytes, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir(exist_ok=True)
    (tmp_path / "notes" / "n.json").write_bytes(document)
    note = refused_or_read(lambda: Store(tmp_path).recall("n"))
    assert isinstance(note, dict)


@fuzz
@given(stage=st.text(max_size=20), value=st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_equal_inputs_have_equal_keys(stage: str, value: Any) -> None:
    from qpack.core.store import key_of

    try:
        key = key_of({"stage": stage, "value": value})
    except UnicodeEncodeError:
        return
    assert key == key_of({"value": value, "stage": stage})
