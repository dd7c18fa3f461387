"""What is served is what the registry's digests say, however the folder that it lies in was treated meanwhile."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qpack.core.errors import RegistryError
from qpack.core.records import FileRecord
from qpack.core.store import Store
from qpack.serve import model_cache, served_release
from registry.core.protocol import PushRequest
from registry.local.registry import LocalRegistry
from tests.codes import coded
from tests.unit.laid_out import publish


@pytest.fixture
def local(tmp_path: Path) -> LocalRegistry:
    """Two releases that differ in their weights and in their config."""
    made = LocalRegistry(tmp_path / "registry")
    for number in (1, 2):
        publish(made, "m", tmp_path / str(number), number)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose content was read to prove them."""
    seen: list[Path] = []
    plain = model_cache.sha256

    def counting(path: Path) -> str:
        seen.append(path)
        return plain(path)

    monkeypatch.setattr(model_cache, "sha256", counting)
    return seen


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def pulled(local: LocalRegistry, store: Store, version: int = 1) -> Path:
    return served_release.pull(store, local.root, served_release.find(local.root, f"m:{version}"))


def original(local: LocalRegistry, version: int = 1) -> dict[str, bytes]:
    records = local.contents(f"m:{version}").files
    return {
        r.path.removeprefix("model/"): local.blob(f"sha256:{r.sha256}").read_bytes()
        for r in records
        if r.path.startswith("model/")
    }


def held(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


def test_a_model_is_hashed_once_and_then_only_when_it_may_have_changed(
    local: LocalRegistry, store: Store, hashed: list[Path]
) -> None:
    folder = pulled(local, store)
    assert len(hashed) == len(original(local))
    assert pulled(local, store) == folder
    assert len(hashed) == len(original(local)), "the seals are the same"
    os.utime(folder / "config.json")
    pulled(local, store)
    assert [path.name for path in hashed[len(original(local)) :]] == ["config.json"]
    pulled(local, store)
    assert len(hashed) == len(original(local)) + 1, "the new seal is kept"


def _write(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


def _other_weights(folder: Path) -> None:
    """Of the same size, at the same time, under the same inode."""
    path = folder / "model.safetensors"
    before, data = path.stat(), path.read_bytes()
    _write(path, bytes([data[0] ^ 1]) + data[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _longer(folder: Path) -> None:
    _write(folder / "config.json", b'{"auto_map": {"AutoModel": "evil.Model"}, "architectures": ["Evil"]}')


def _replaced(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(b"\0" * len(data))


def _linked(folder: Path) -> None:
    path = folder / "model.safetensors"
    shutil.copy(path, folder.parent / "elsewhere")
    path.unlink()
    path.symlink_to(folder.parent / "elsewhere")


def _gone(folder: Path) -> None:
    (folder / "config.json").unlink()


def _added(folder: Path) -> None:
    (folder / "evil.py").write_text("")


def _added_deeper(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "more" / "evil.py").write_text("")


def _added_link(folder: Path) -> None:
    (folder / "more").symlink_to(folder.parent)


def _pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


CHANGES = [_other_weights, _longer, _replaced, _linked, _gone, _added, _added_deeper, _added_link, _pipe]


def _copied(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_was_changed_is_made_anew(
    change: Callable[[Path], None], local: LocalRegistry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the disk can neither clone nor link, the registry's own copy is whole.
    monkeypatch.setattr(model_cache, "link_or_copy", _copied)
    folder = pulled(local, store)
    change(folder)
    assert held(pulled(local, store)) == original(local)


def test_what_reaches_the_registry_through_a_link_is_an_error_and_not_served(
    local: LocalRegistry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_cache, "link_or_copy", lambda source, target: target.hardlink_to(source))
    folder = pulled(local, store)
    _other_weights(folder)
    with pytest.raises(RegistryError, check=coded("damaged-content"), match=r"model/model\.safetensors"):
        pulled(local, store)
    assert not folder.exists()


def test_another_releases_weights_are_never_served_whatever_a_release_says_of_itself(
    local: LocalRegistry, store: Store, tmp_path: Path
) -> None:
    """A release may call its model by any digest: by that of one that was served before, or will be."""
    trusted = json.loads(local.read("m:1", "serving.json"))["model"]["digest"]
    folder = tmp_path / "2" / "release"
    said = json.loads((folder / "serving.json").read_text())
    said["model"]["digest"] = trusted
    _write(folder / "serving.json", json.dumps(said).encode())
    local.push(folder, PushRequest("evil", "1", None, actor="mallory"), annotations=local.resolve("m:2").annotations)
    evil = served_release.find(local.root, "evil:1")
    with pytest.raises(RegistryError, check=coded("not-verified")):
        served_release.pull(store, local.root, evil)
    assert not (store.home / "store").exists()
    assert held(pulled(local, store)) == original(local)
    with pytest.raises(RegistryError, check=coded("not-verified")):
        served_release.pull(store, local.root, evil)
    assert served_release.model_folder(store, evil) == pulled(local, store, 2), "its key is that of what it holds"
    assert weights(pulled(local, store)) != weights(pulled(local, store, 2))


def test_a_key_is_over_paths_and_digests_alone() -> None:
    def record(path: str, digest: str) -> FileRecord:
        return FileRecord(path=path, size_bytes=1, sha256=digest)

    one, two = record("a", "1" * 64), record("b", "2" * 64)
    assert model_cache.key((one, two)) == model_cache.key((two, one))
    others = [(one,), (two,), (record("a", "2" * 64), record("b", "1" * 64)), (one, record("c", "2" * 64))]
    assert len({model_cache.key(files) for files in [*others, (one, two)]}) == 5


@pytest.mark.parametrize(
    "put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.write_text("")]
)
def test_a_blob_that_is_no_file_is_an_error_and_not_waited_for(
    put: Callable[[Path], None], local: LocalRegistry, store: Store
) -> None:
    record = next(r for r in local.contents("m:1").files if r.path == "model/model.safetensors")
    blob = local.blob(f"sha256:{record.sha256}")
    blob.unlink()
    put(blob)
    with pytest.raises(RegistryError, match=r"model/model\.safetensors"):
        pulled(local, store)
    assert not list((store.home / "store" / "served").glob("*"))


@pytest.mark.parametrize("note", ["[]", "null", "{", '{"config.json": 1, "model.safetensors": [1, 2]}', '"x"'])
def test_a_lost_or_damaged_note_of_seals_costs_a_reading_and_nothing_else(
    note: str, local: LocalRegistry, store: Store, hashed: list[Path]
) -> None:
    pulled(local, store)
    (path,) = (store.home / "notes").glob("sealed-*")
    path.write_text(note)
    assert held(pulled(local, store)) == original(local)
    assert len(hashed) == 2 * len(original(local))
