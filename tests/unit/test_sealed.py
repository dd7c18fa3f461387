"""A stored result is what it was when it was finished, and so is what it points at; else it is made anew."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qpack.core import hashing, seals
from qpack.core.console import Plain
from qpack.core.errors import EnvironmentFailed
from qpack.core.records import Window
from qpack.core.store import Entry, Store
from qpack.pipeline import plan
from qpack.pipeline.context import Context
from qpack.pipeline.stages import fetch
from qpack.pipeline.state import Build
from qpack.recipe import recipe_file
from tests.codes import coded
from tests.unit.recipes import workspace


def begun(folder: Path, store: Store) -> tuple[Build, io.StringIO]:
    """A build of the recipe in `folder`, and what is said while it runs."""
    said = io.StringIO()
    planned = plan.make(recipe_file.load(folder / "tiny.yaml"), store, thorough=True)
    return Build(planned, Context(store, folder / "registry", Plain(said, groups=False, verbose=True))), said


def fetched(folder: Path, store: Store) -> tuple[dict[str, bytes], str]:
    """What a build of `folder` has as its source model, and what was said."""
    build, said = begun(folder, store)
    checkpoint = fetch.run(build).require(fetch.FETCHED).folder / "checkpoint"
    return {path.name: path.read_bytes() for path in checkpoint.iterdir()}, said.getvalue()


def edit(path: Path, *, quietly: bool = False) -> None:
    """Change the last byte in place; `quietly` sets the time of modification back."""
    state, whole = path.stat(), path.read_bytes()
    with path.open("r+b") as file:
        file.write(whole[:-1] + bytes([whole[-1] ^ 1]))
    if quietly:
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)


@pytest.mark.parametrize("quietly", [False, True])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_the_same_model_elsewhere_never_gets_the_files_of_a_folder_that_was_changed(
    tmp_path: Path, name: str, quietly: bool
) -> None:
    store = Store(tmp_path / "home")
    workspace(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "b" / "model").iterdir()}
    assert fetched(tmp_path / "a", store)[0] == wanted
    if name == "model.safetensors":
        edit(tmp_path / "a" / "model" / name, quietly=quietly)
    else:
        other = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
        (tmp_path / "a" / "model" / name).write_text(json.dumps(other))
    found, said = fetched(tmp_path / "b", store)
    assert found == wanted
    assert f"{tmp_path / 'a' / 'model' / name}" in said
    assert fetched(tmp_path / "b", store) == (wanted, ""), "made anew, it is reused"


def test_a_model_whose_folder_is_gone_is_linked_from_where_it_is_now(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    workspace(tmp_path / "a")
    before = fetched(tmp_path / "a", store)[0]
    (tmp_path / "a").rename(tmp_path / "b")
    assert fetched(tmp_path / "b", store)[0] == before


def test_a_touched_or_copied_source_is_read_again_and_reused(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    workspace(tmp_path / "a")
    fetched(tmp_path / "a", store)
    for path in (tmp_path / "a" / "model").iterdir():
        os.utime(path)
    build, said = begun(tmp_path / "a", store)
    assert fetch.run(build).require(fetch.FETCHED).reused
    assert said.getvalue() == ""


@pytest.mark.parametrize("name", ["texts.jsonl", "held-out.jsonl", "model/tokenizer.json", "model/model.safetensors"])
def test_an_edit_that_hides_moves_every_key_that_it_should(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / "home")
    workspace(tmp_path / "a")
    if name == "model/tokenizer.json":
        (tmp_path / "a" / name).write_text('{"a": 1}')
    before = begun(tmp_path / "a", store)[0].plan.steps
    edit(tmp_path / "a" / name, quietly=True)
    after = begun(tmp_path / "a", store)[0].plan.steps
    moved = {stage for stage in before if before[stage].key != after[stage].key}
    assert {"quantize", "artifact.language", "judge"} <= moved
    assert ("fetch" in moved) == name.startswith("model/")


def kept(store: Store, make: Callable[[Path], None] | None = None) -> Entry[Window]:
    """A stored result with two files."""

    def made(folder: Path) -> Window:
        (folder / "checkpoint").mkdir()
        (folder / "checkpoint" / "weights").write_bytes(b"0123456789")
        (folder / "tokens.jsonl").write_text("[1]\n")
        if make:
            make(folder)
        return Window(nll=1.0, tokens=2)

    return store.once("stage", "k", Window, made, inputs={"a": 1})


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: edit(folder / "checkpoint" / "weights", quietly=True),
        lambda folder: edit(folder / "tokens.jsonl"),
        lambda folder: (folder / "tokens.jsonl").unlink(),
        lambda folder: (folder / "more").write_text("x"),
        lambda folder: (folder / "result.json").write_text(
            (folder / "result.json").read_text().replace('"nll": 1.0', '"nll": 9.0')
        ),
        lambda folder: (folder / "seal.json").unlink(),
        lambda folder: (folder / "seal.json").write_text("[" * 100_000),
        lambda folder: (folder / "seal.json").write_text("{}"),
        lambda folder: (folder / "seal.json").write_text('[["tokens.jsonl"]]'),
    ],
)
def test_what_was_changed_in_the_store_is_made_anew(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    store = Store(tmp_path)
    folder = kept(store).folder
    assert kept(store).reused
    damage(folder)
    assert store.get("stage", "k", Window) is None
    assert not store.holds("stage", "k")
    again = kept(store)
    assert not again.reused
    assert again.result.nll == 1.0
    assert (folder / "checkpoint" / "weights").read_bytes() == b"0123456789"
    assert kept(store).reused


def test_files_that_were_only_copied_are_read_once_and_trusted(tmp_path: Path) -> None:
    kept(Store(tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    folder = Store(tmp_path / "two").folder("stage", "k")
    before = (folder / seals.FILE).read_text()
    assert kept(Store(tmp_path / "two")).reused
    assert (folder / seals.FILE).read_text() != before, "and the seal is renewed"


def test_another_name_for_a_file_is_no_change(tmp_path: Path) -> None:
    folder = kept(Store(tmp_path)).folder
    time.sleep(0.1)
    assert seals.broken(folder) == ()
    (tmp_path / "link").hardlink_to(folder / "checkpoint" / "weights")
    time.sleep(0.1)  # longer than a tick of the clock for files
    seals.linked(folder)
    sealed = (folder / seals.FILE).read_text()
    assert seals.broken(folder) == ()
    assert (folder / seals.FILE).read_text() == sealed, "and nothing was read again"
    edit(tmp_path / "link", quietly=True)
    assert seals.broken(folder) == ("checkpoint/weights",)


@pytest.mark.parametrize("other", [False, True])
def test_what_was_made_from_a_result_that_was_lost_is_made_anew_where_that_came_out_otherwise(
    tmp_path: Path, other: bool
) -> None:
    store, said = Store(tmp_path), []

    def source(nll: float) -> Entry[Window]:
        return store.once("source", "k", Window, lambda _: Window(nll=nll, tokens=1), inputs={})

    def derived(used: Entry[Window]) -> Entry[Window]:
        return store.once(
            "derived",
            "d",
            Window,
            lambda _: Window(nll=used.result.nll * 2, tokens=1),
            inputs={},
            report=said.append,
            uses=(used,),
        )

    first = source(1.0)
    assert derived(first).result.nll == 2.0
    assert derived(source(1.0)).reused
    store.forget("source", "k")
    again = source(3.0 if other else 1.0)
    made = derived(again)
    assert made.reused != other
    assert made.result.nll == again.result.nll * 2
    assert len(said) == other


def test_nothing_is_kept_of_a_source_that_was_changed_while_it_was_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    source = kept(store)

    def make(_: Path) -> Window:
        edit(source.folder / "checkpoint" / "weights", quietly=True)
        return Window(nll=2.0, tokens=2)

    with pytest.raises(EnvironmentFailed, check=coded("changed-while-read"), match="weights"):
        store.once("next", "k", Window, make, inputs={}, uses=(source,))
    assert not store.holds("next", "k")
    assert not list((tmp_path / "store" / "drafts").iterdir())


def test_a_source_that_changes_between_plan_and_fetch_stops_the_build(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    workspace(tmp_path / "a")
    build, _ = begun(tmp_path / "a", store)
    edit(tmp_path / "a" / "model" / "model.safetensors", quietly=True)
    with pytest.raises(EnvironmentFailed, check=coded("changed-while-read")):
        fetch.run(build)


def test_a_file_that_was_just_written_is_read_again_because_its_times_do_not_tell(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    state = path.stat()
    assert not hashing.settled(state, state.st_ctime_ns + 1_000_000)
    assert hashing.settled(state, state.st_ctime_ns + 10_000_000_000)
    for _ in range(200):
        path.write_text("a")
        one = hashing.sha256_once(path)
        path.write_text("b")
        assert hashing.sha256_once(path) != one


def test_a_file_is_read_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read, whole = tmp_path / "file", [], hashing.sha256

    def counted(file: Path) -> str:
        read.append(file)
        return whole(file)

    path.write_bytes(b"x" * 1000)
    time.sleep(0.1)  # longer than a tick of the clock for files
    monkeypatch.setattr(hashing, "sha256", counted)
    assert {hashing.sha256_once(path) for _ in range(5)} == {whole(path)}
    assert len(read) == 1
