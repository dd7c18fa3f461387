from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.core.errors import EnvironmentFailed
from qpack.core.records import Window
from qpack.core.store import Store, key_of
from tests.codes import coded

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.text(), json_values, min_size=1, max_size=5))
def test_a_key_depends_on_content_and_not_on_order(inputs: dict[str, object]) -> None:
    assert key_of(inputs) == key_of(dict(reversed(list(inputs.items()))))
    assert key_of(inputs) != key_of({**inputs, "one more": 1})


def test_a_finished_result_is_never_made_again(tmp_path: Path) -> None:
    store, calls = Store(tmp_path), []

    def make(folder: Path) -> Window:
        calls.append(folder)
        (folder / "file").write_text("x")
        return Window(nll=1.5, tokens=3)

    first = store.once("stage", "k", Window, make, inputs={"a": 1})
    second = store.once("stage", "k", Window, make, inputs={"a": 1})
    assert len(calls) == 1
    assert (first.reused, second.reused) == (False, True)
    assert second.result == first.result
    assert (second.folder / "file").read_text() == "x"


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(folder: Path) -> Window:
        (folder / "half").write_text("x")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.once("stage", "k", Window, fail, inputs={})
    assert store.get("stage", "k", Window) is None
    assert not list((tmp_path / "store" / "drafts").iterdir())


def test_a_result_of_another_version_counts_as_absent(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = store.once("stage", "k", Window, lambda _: Window(nll=1, tokens=1), inputs={})
    text = (entry.folder / "result.json").read_text()
    (entry.folder / "result.json").write_text(text.replace('"tokens"', '"tokenz"'))
    assert store.get("stage", "k", Window) is None
    assert not store.once("stage", "k", Window, lambda _: Window(nll=2, tokens=1), inputs={}).reused


def test_a_result_that_is_of_no_use_now_is_made_again_once_and_what_was_made_from_it_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    disturbed, quiet = Window(nll=9, tokens=1), Window(nll=1, tokens=1)
    first = store.once("load", "k", Window, lambda _: disturbed, inputs={})
    store.once("verdict", "v", Window, lambda _: disturbed, inputs={}, uses=[first])

    def usable(found: Window) -> bool:
        return found.nll < 5

    assert store.get("load", "k", Window) is not None, "to whom its use doesn't matter"
    assert store.get("load", "k", Window, (), usable) is None
    told: list[str] = []
    again = store.once("load", "k", Window, lambda _: quiet, inputs={}, usable=usable, report=told.append)
    assert (again.reused, again.result) == (False, quiet)
    assert len(told) == 1
    assert store.once("load", "k", Window, lambda _: disturbed, inputs={}, usable=usable).reused
    assert not store.once("verdict", "v", Window, lambda _: quiet, inputs={}, uses=[again]).reused
    still = store.once("load", "other", Window, lambda _: disturbed, inputs={}, usable=usable)
    assert still.result == disturbed, "what is made is taken as it is"


def test_a_full_disk_is_said_as_such(tmp_path: Path) -> None:
    import errno

    def full(_: Path) -> Window:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(EnvironmentFailed, check=coded("disk-full")):
        Store(tmp_path).once("stage", "k", Window, full, inputs={})


def test_a_torn_note_is_an_empty_note(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.remember("n", {"a": 1})
    assert store.recall("n") == {"a": 1}
    (tmp_path / "notes" / "n.json").write_text('{"a"')
    assert store.recall("n") == {}


def test_drafts_of_the_dead_are_swept_and_those_of_the_living_stay(tmp_path: Path) -> None:
    store = Store(tmp_path)
    dead = tmp_path / "store" / "drafts" / "stage-dead"
    dead.mkdir(parents=True)
    (tmp_path / "store" / "locks").mkdir()

    def make(folder: Path) -> Window:
        store.sweep()
        assert folder.exists()
        return Window(nll=1, tokens=1)

    store.once("stage", "alive", Window, make, inputs={})
    assert not dead.exists()


def test_the_scratch_folder_of_a_stage_is_not_swept_with_the_drafts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    scratch = store.scratch("quantize", "k")
    scratch.mkdir(parents=True)
    (scratch / "layer").write_text("kept")
    store.sweep()
    assert (scratch / "layer").read_text() == "kept"
