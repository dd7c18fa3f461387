"""What every registry does, whatever its kind; and what those do that are kept on this machine, with a history."""

from __future__ import annotations

import itertools
import shutil
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from qpack.core.errors import RegistryError
from registry.core.protocol import AliasMove, PushRequest, Registry, Releases, Remote
from registry.lifecycle.import_release import import_release
from registry.local.registry import LocalRegistry
from registry.registries import REGISTRIES, open_oci, open_registry
from tests.codes import coded
from tests.contract.oci_server import Server
from tests.contract.registries_contract import (
    FILES,
    KINDS,
    Files,
    check_whole,
    contents,
    pushing,
    write,
)
from tests.patience import PATIENCE

KILLS = 20


ENGINES = {"mlflow": pytest.mark.engines}
"""Kinds whose server runs in an environment of its own."""


@pytest.fixture(params=[pytest.param(kind, marks=ENGINES.get(kind, ())) for kind in sorted(KINDS)])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def location(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh, empty registry of that kind."""
    if kind == "oci":
        server: Server = request.getfixturevalue("oci_server")
        return f"{server.host}/t{uuid.uuid4().hex}"
    if kind == "mlflow":
        emptied: str = request.getfixturevalue("empty_mlflow")
        return emptied
    return str(tmp_path / "registry")


@pytest.fixture
def releases(kind: str, location: str) -> Iterator[Releases]:
    found = KINDS[kind](location)
    yield found
    if kind not in REGISTRIES:
        cast("Remote", found).close()


@pytest.fixture(params=sorted(REGISTRIES))
def kept_kind(request: pytest.FixtureRequest) -> str:
    """Of those kinds that are kept on this machine."""
    found: str = request.param
    return found


@pytest.fixture
def registry(kept_kind: str, tmp_path: Path) -> Registry:
    return open_registry(kept_kind, str(tmp_path / "registry"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "release", FILES)


def push(registry: Releases, folder: Path, version: str | None = None, alias: str | None = "latest") -> str:
    return registry.push(
        folder, PushRequest("m", version, alias, actor="me"), annotations={"org.example": "yes"}
    ).version


def changed(folder: Path, text: bytes = b"{ }") -> Path:
    (folder / "model/config.json").write_bytes(text)
    return folder


def test_every_kind_of_registry_is_tested() -> None:
    assert set(KINDS) >= set(REGISTRIES)


def test_what_was_pushed_comes_back(releases: Releases, folder: Path, tmp_path: Path) -> None:
    published = releases.push(
        folder, PushRequest("org/m", None, "latest", actor="me", note="n"), annotations={"org.example": "yes"}
    )
    assert (published.reference, published.version, published.already_there) == ("org/m:1", "1", False)
    resolved = releases.resolve("org/m")
    assert resolved == releases.resolve(f"org/m:1@{published.digest}") == releases.pull("org/m", tmp_path / "pulled")
    assert (resolved.name, resolved.version, resolved.digest) == ("org/m", "1", published.digest)
    assert (resolved.aliases, resolved.annotations) == (("latest",), {"org.example": "yes"})
    assert contents(tmp_path / "pulled") == FILES
    assert releases.read("org/m", "model/config.json") == FILES["model/config.json"]
    assert releases.list() == releases.list("org/m") == (resolved,)


def test_a_release_has_the_same_digest_everywhere(releases: Releases, folder: Path, tmp_path: Path) -> None:
    local = LocalRegistry(tmp_path / "other")
    pushed = local.push(folder, PushRequest("m", None, None, actor="me"), annotations={"org.example": "yes"})
    put = releases.put(local.bundle("m:1"), PushRequest("n", "1", "latest", actor="me"))
    assert put.digest == pushed.digest == releases.resolve("n").digest
    releases.pull("n", tmp_path / "pulled")
    again = releases.push(
        tmp_path / "pulled", PushRequest("o", None, None, actor="me"), annotations={"org.example": "yes"}
    )
    assert again.digest == pushed.digest


def test_a_release_with_a_damaged_file_is_not_taken(releases: Releases, folder: Path, tmp_path: Path) -> None:
    local = LocalRegistry(tmp_path / "other")
    local.push(folder, PushRequest("m", None, None, actor="me"), annotations={})
    packed = local.bundle("m:1")
    weights = next(record for record in packed.contents.files if record.path == "model/model.safetensors")
    packed.source(weights).chmod(0o600)
    packed.source(weights).write_bytes(b"x" * weights.size_bytes)
    with pytest.raises(RegistryError, check=coded("damaged-content")):
        releases.put(packed, PushRequest("m", "1", "latest", actor="me"))
    assert releases.list() == ()


def test_the_history_tells_of_a_push(registry: Registry, folder: Path, tmp_path: Path) -> None:
    published = registry.push(
        folder, PushRequest("org/m", None, "latest", actor="me", note="n"), annotations={"org.example": "yes"}
    )
    assert (published.reference, published.version, published.already_there) == ("org/m:1", "1", False)
    resolved = registry.resolve("org/m")
    assert resolved == registry.resolve(f"org/m:1@{published.digest}") == registry.pull("org/m", tmp_path / "pulled")
    assert (resolved.name, resolved.version, resolved.digest) == ("org/m", "1", published.digest)
    assert (resolved.aliases, resolved.annotations) == (("latest",), {"org.example": "yes"})
    assert contents(tmp_path / "pulled") == FILES
    assert registry.read("org/m", "model/config.json") == FILES["model/config.json"]
    assert registry.open("org/m", "model/model.safetensors").read_bytes() == FILES["model/model.safetensors"]
    (event,) = registry.history("org/m")
    assert (event.who, event.what, event.version, event.alias, event.note) == ("me", "push", "1", "latest", "n")


def test_the_same_content_again_changes_nothing(registry: Registry, folder: Path) -> None:
    push(registry, folder)
    before = registry.list(), registry.history()
    again = registry.push(folder, PushRequest("m", None, "latest", actor="other"), annotations={"org.example": "yes"})
    assert (again.already_there, again.version) == (True, "1")
    assert (registry.list(), registry.history()) == before


def test_the_same_content_again_still_moves_the_alias(registry: Registry, folder: Path) -> None:
    push(registry, folder)
    push(registry, changed(folder))
    assert push(registry, changed(folder, FILES["model/config.json"]), alias="latest") == "1"
    assert registry.resolve("m").version == "1"
    assert [event.what for event in registry.history()] == ["push", "push", "alias"]
    assert registry.history()[-1].previous == "2"


def test_a_version_with_other_content_is_refused(registry: Registry, folder: Path) -> None:
    push(registry, folder, "1.0")
    before = registry.list(), registry.history()
    with pytest.raises(RegistryError, check=coded("version-exists")) as caught:
        push(registry, changed(folder), "1.0")
    assert caught.value.exit_code == 8
    assert caught.value.hint
    assert (registry.list(), registry.history()) == before
    assert registry.collect(dry_run=True).bytes_freed == 0


def test_a_later_change_of_the_source_does_not_reach_the_registry(registry: Registry, folder: Path) -> None:
    push(registry, folder)
    with (folder / "model/model.safetensors").open("r+b") as file:
        file.write(b"changed")
    assert registry.read("m", "model/model.safetensors") == FILES["model/model.safetensors"]


def test_a_consumed_folder_is_published_like_any_other(registry: Registry, folder: Path, tmp_path: Path) -> None:
    first = registry.push(folder, PushRequest("m", None, None, actor="me"), annotations={})
    other = write(tmp_path / "other", FILES)
    second = registry.push(other, PushRequest("m", None, None, actor="me", consume=True), annotations={})
    third = registry.push(changed(folder), PushRequest("m", None, "latest", actor="me", consume=True), annotations={})
    assert first.digest == second.digest
    assert third.version == "2"
    registry.pull("m", tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == {**FILES, "model/config.json": b"{ }"}


def test_versions_are_listed_in_the_order_of_publication(registry: Registry, folder: Path) -> None:
    assert registry.list() == ()
    versions = [push(registry, changed(folder, text), v) for text, v in ((b"1", None), (b"2", "0.5"), (b"3", None))]
    assert [resolved.version for resolved in registry.list("m")] == versions == ["1", "0.5", "2"]


def test_content_that_was_published_before_is_found(releases: Releases, folder: Path) -> None:
    push(releases, folder)
    before = releases.list()
    again = releases.push(folder, PushRequest("m", None, "latest", actor="other"), annotations={"org.example": "yes"})
    assert (again.already_there, again.version) == (True, "1")
    assert releases.list() == before
    assert push(releases, changed(folder)) == "2"
    assert push(releases, changed(folder, FILES["model/config.json"])) == "1"
    assert releases.resolve("m").version == "1"


def test_a_version_is_never_overwritten(releases: Releases, folder: Path) -> None:
    push(releases, folder, "1.0")
    before = releases.list()
    with pytest.raises(RegistryError, check=coded("version-exists")) as caught:
        push(releases, changed(folder), "1.0")
    assert (caught.value.exit_code, bool(caught.value.hint)) == (8, True)
    assert releases.list() == before


def test_an_alias_moves_only_from_where_it_was_expected(releases: Releases, folder: Path) -> None:
    push(releases, folder)
    push(releases, changed(folder))
    assert releases.alias(AliasMove("m", "prod", "1", "", actor="me")).aliases == ("prod",)
    releases.alias(AliasMove("m", "prod", "2", "1", actor="me", note="better"))
    with pytest.raises(RegistryError, check=coded("alias-moved"), match="2"):
        releases.alias(AliasMove("m", "prod", "1", "1", actor="me"))
    assert releases.resolve("m:prod").version == "2"


def test_an_alias_moves_by_compare_and_swap(registry: Registry, folder: Path) -> None:
    push(registry, folder)
    push(registry, changed(folder))
    assert registry.alias(AliasMove("m", "prod", "1", "", actor="me")).aliases == ("prod",)
    registry.alias(AliasMove("m", "prod", "2", "1", actor="me", note="better"))
    before = registry.history()
    with pytest.raises(RegistryError, check=coded("alias-moved"), match="2"):
        registry.alias(AliasMove("m", "prod", "1", "1", actor="me"))
    assert registry.resolve("m:prod").version == "2"
    assert registry.history() == before
    assert (before[-1].what, before[-1].previous, before[-1].note) == ("alias", "1", "better")


@pytest.mark.parametrize(
    ("ref", "hint"),
    [("n", "m"), ("m:lates", "'latest'"), ("m:7", "1"), ("m@sha256:" + "0" * 64, "sha256:"), ("M", "name:version")],
)
def test_an_unknown_reference_says_what_there_is(releases: Releases, folder: Path, ref: str, hint: str) -> None:
    push(releases, folder)
    with pytest.raises(RegistryError) as caught:
        releases.resolve(ref)
    assert hint in caught.value.hint


def test_an_unknown_file_says_what_is_close(releases: Releases, folder: Path) -> None:
    push(releases, folder)
    with pytest.raises(RegistryError) as caught:
        releases.read("m", "model/confg.json")
    assert "'model/config.json'" in caught.value.hint


def test_an_empty_registry_says_that_nothing_was_published(releases: Releases) -> None:
    for ask in (lambda: releases.resolve("m"), lambda: releases.alias(AliasMove("m", "a", "1", actor="me"))):
        with pytest.raises(RegistryError) as caught:
            ask()
        assert caught.value.hint == "Nothing was published here yet."
    assert releases.list() == ()


def test_an_empty_registry_has_no_history_and_is_not_made_by_reading(registry: Registry, tmp_path: Path) -> None:
    assert (registry.list(), registry.history(), registry.collect(dry_run=False).blobs) == ((), (), ())
    assert list(tmp_path.iterdir()) == []


def test_a_pull_never_touches_what_is_there(releases: Releases, folder: Path, tmp_path: Path) -> None:
    push(releases, folder)
    write(tmp_path / "mine", {"mine.txt": b"mine"})
    with pytest.raises(RegistryError, check=coded("already-exists")):
        releases.pull("m", tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"mine.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    releases.pull("m", tmp_path / "empty")
    assert contents(tmp_path / "empty") == FILES


def test_what_cannot_be_published_is_refused(releases: Releases, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(RegistryError, check=coded("empty-folder")):
        push(releases, tmp_path / "nothing")
    with pytest.raises(RegistryError, check=coded("not-a-folder")):
        push(releases, tmp_path / "absent")
    (folder / "link").symlink_to("README.md")
    with pytest.raises(RegistryError, check=coded("not-a-file")):
        push(releases, folder)
    assert releases.list() == ()


def test_collecting_removes_nothing_that_a_version_needs(registry: Registry, folder: Path, tmp_path: Path) -> None:
    push(registry, folder)
    push(registry, changed(folder))
    assert registry.collect(dry_run=False).blobs == ()
    check_whole(registry, tmp_path, {"1": FILES, "2": {**FILES, "model/config.json": b"{ }"}})


@pytest.mark.parametrize("consume", [False, True])
def test_a_killed_push_leaves_no_version_or_a_whole_one(
    kept_kind: str, registry: Registry, tmp_path: Path, consume: bool
) -> None:
    """Kills a push just before steps that are spread evenly over all that it takes."""
    first = write(tmp_path / "first", FILES)
    registry.push(first, PushRequest("m", None, "latest", actor="me"), annotations={})

    def release(number: int) -> Files:
        return {**FILES, "model/config.json": b"%d" % number, "model/big.safetensors": b"%d" % number * 300_000}

    def attempt(number: int, kill_at: int) -> tuple[int, str]:
        folder = write(tmp_path / "next", release(number))
        with pushing(kept_kind, str(tmp_path / "registry"), folder, "m", kill_at=kill_at, consume=consume) as process:
            out, err = process.communicate(timeout=PATIENCE)
        shutil.rmtree(folder)
        assert process.returncode in (0, -9), err
        return process.returncode, out

    _, out = attempt(0, 0)
    steps = int(out.split()[0])
    assert steps > KILLS
    expected = {"first": FILES, "0": release(0)}
    killed, published = 0, 2
    for number in range(1, KILLS // 2 + 1):
        expected[str(number)] = release(number)
        code, _ = attempt(number, max(1, number * steps * 2 // KILLS))
        killed += code == -9
        scratch = tmp_path / f"scratch-{number}"
        found = check_whole(registry, scratch, expected)
        assert len(found) in (published, published + 1)
        assert registry.resolve("m").version == found[-1].version
        registry.collect(dry_run=False)
        assert registry.collect(dry_run=True).bytes_freed == 0
        published = len(check_whole(registry, scratch / "again", expected))
        shutil.rmtree(scratch)
    assert killed >= KILLS // 2 - 1
    code, _ = attempt(KILLS + 1, -1)
    assert code == 0
    assert len(registry.list()) == published + 1


def test_writers_at_once_each_get_a_version_of_their_own(kept_kind: str, registry: Registry, tmp_path: Path) -> None:
    expected = {str(n): {**FILES, "model/config.json": b"%d" % n} for n in range(4)}
    folders = [write(tmp_path / name, files) for name, files in expected.items()]
    # Every folder twice: the second push of the same content must find the first.
    running = [
        pushing(kept_kind, str(tmp_path / "registry"), folder, "m") for folder in itertools.chain(folders, folders)
    ]
    while any(process.poll() is None for process in running):
        registry.collect(dry_run=False)
    results = [process.communicate()[0].split() for process in running]
    assert [process.returncode for process in running] == [0] * 8
    found = check_whole(registry, tmp_path / "scratch", expected)
    assert [resolved.version for resolved in found] == ["1", "2", "3", "4"]
    assert sorted(there for _, _, there in results) == ["False"] * 4 + ["True"] * 4
    assert [version for _, version, _ in results[:4]] == [version for _, version, _ in results[4:]]


def test_an_unreadable_release_is_listed_and_another_one_can_be_imported(
    registry: Registry, folder: Path, tmp_path: Path, oci_server: Server
) -> None:
    push(registry, folder)
    lost = cast("LocalRegistry", registry).blob(registry.resolve("m").digest)
    with closing(open_oci(oci_server.host, prefix=f"t{uuid.uuid4().hex}")) as there:
        other = write(tmp_path / "other", {"README.md": b"another"})
        there.push(other, PushRequest("n", "1", "latest", actor="me"), annotations={})
        lost.unlink()
        assert [bool(one.unreadable) for one in registry.list()] == [True]
        assert import_release(there, "n:1", registry, tmp_path / "drafts", actor="me", note="").reference == "n:1"
    assert [(one.name, bool(one.unreadable)) for one in registry.list()] == [("m", True), ("n", False)]
    push(registry, folder)
    assert [bool(one.unreadable) for one in registry.list()] == [False, False], "published again, it is whole"
