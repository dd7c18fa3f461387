"""What the local registry does on a disk: its layout, and what becomes of it when the disk fails."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qpack.core.errors import RegistryError
from registry.core import modelpack
from registry.core.protocol import AliasMove, PushRequest, Ref
from registry.core.transfers import draft_of
from registry.local.changes import Author
from registry.local.index import CHECKSUM, UNSEALED
from registry.local.registry import LocalRegistry
from registry.local.repair import Lost, is_suspect, repair_release
from tests.codes import coded
from tests.contract.registries_contract import FILES, REPOSITORY, contents, pushing, write
from tests.patience import PATIENCE


@pytest.fixture
def registry(tmp_path: Path) -> LocalRegistry:
    return LocalRegistry(tmp_path / "registry")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "release", FILES)


def push(registry: LocalRegistry, folder: Path, *, consume: bool = False) -> str:
    return registry.push(folder, PushRequest("m", None, "latest", actor="me", consume=consume), annotations={}).digest


def blob_of(registry: LocalRegistry, digest: str) -> Path:
    return registry.root / "blobs" / digest.replace(":", "/")


def blob(registry: LocalRegistry, data: bytes) -> Path:
    return registry.root / "blobs/sha256" / modelpack.digest_of(data).removeprefix("sha256:")


def edit(registry: LocalRegistry, change: Callable[[str], str]) -> None:
    """Change index.json on purpose, as a person or another program does: what it says of itself no longer counts."""
    path = registry.root / "index.json"
    index = json.loads(change(path.read_text()))
    index.setdefault("annotations", {})[CHECKSUM] = UNSEALED
    path.write_text(json.dumps(index))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def test_a_registry_is_an_oci_image_layout(registry: LocalRegistry, folder: Path) -> None:
    digest = push(registry, folder)
    assert json.loads((registry.root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((registry.root / "index.json").read_text())
    assert (index["schemaVersion"], index["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")
    names = [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in index["manifests"]]
    assert names == ["m:1", "m:latest"]
    manifest_path = registry.root / "blobs" / digest.replace(":", "/")
    assert {entry["digest"] for entry in index["manifests"]} == {digest}
    assert {entry["size"] for entry in index["manifests"]} == {manifest_path.stat().st_size}
    manifest = json.loads(manifest_path.read_bytes())
    for part in (manifest["config"], *manifest["layers"]):
        path = registry.root / "blobs" / part["digest"].replace(":", "/")
        assert modelpack.digest_of(path.read_bytes()) == part["digest"]
        assert path.stat().st_size == part["size"]


def test_versions_share_their_blobs(registry: LocalRegistry, folder: Path) -> None:
    push(registry, folder)
    before = {path.name: path.stat().st_ino for path in (registry.root / "blobs/sha256").iterdir()}
    (folder / "README.md").write_bytes(b"# another\n")
    push(registry, folder)
    after = {path.name: path.stat().st_ino for path in (registry.root / "blobs/sha256").iterdir()}
    # A card, a config and a manifest are new; nothing was written again.
    assert len(after) == len(before) + 3
    assert before.items() <= after.items()


def test_consuming_links_and_protects_the_files(registry: LocalRegistry, folder: Path) -> None:
    push(registry, folder, consume=True)
    file = folder / "model/config.json"
    assert file.samefile(blob(registry, FILES["model/config.json"]))
    assert file.stat().st_mode & 0o222 == 0


def test_without_consuming_the_files_stay_their_owners(registry: LocalRegistry, folder: Path) -> None:
    push(registry, folder)
    file = folder / "model/config.json"
    assert not file.samefile(blob(registry, FILES["model/config.json"]))
    assert file.stat().st_mode & 0o200


def test_entries_of_other_programs_are_kept(registry: LocalRegistry, folder: Path) -> None:
    push(registry, folder)
    layer = modelpack.canonical({"layer": 1})
    image = modelpack.canonical({"layers": [{"digest": modelpack.digest_of(layer), "mediaType": "x", "size": 1}]})
    for data in (layer, image):
        blob(registry, data).write_bytes(data)
    path = registry.root / "index.json"
    index = json.loads(path.read_bytes())
    entry = {"mediaType": modelpack.MANIFEST_TYPE, "digest": modelpack.digest_of(image), "size": len(image)}
    index["manifests"].append(entry)
    path.write_text(json.dumps(index))
    (folder / "README.md").write_bytes(b"# another\n")
    push(registry, folder)
    assert registry.collect(dry_run=False).blobs == ()
    assert entry in json.loads(path.read_bytes())["manifests"]
    assert blob(registry, layer).exists()


def test_a_flipped_bit_is_found_and_publishing_again_repairs_it(
    registry: LocalRegistry, folder: Path, tmp_path: Path
) -> None:
    push(registry, folder)
    for damaged in sorted((registry.root / "blobs/sha256").iterdir()):
        if damaged.stat().st_size == 0:
            continue
        whole = damaged.read_bytes()
        flip(damaged)
        with pytest.raises(RegistryError, check=coded("damaged-content")) as caught:
            registry.pull("m", tmp_path / "pulled")
        assert "from another copy" in caught.value.hint
        assert list(tmp_path.glob("*pulled*")) == []
        push(registry, folder)
        assert damaged.read_bytes() == whole
        registry.pull("m", tmp_path / damaged.name)


def test_a_lost_blob_is_found_and_publishing_again_repairs_it(registry: LocalRegistry, folder: Path) -> None:
    push(registry, folder)
    blob(registry, FILES["README.md"]).unlink()
    for ask in (registry.open, registry.read):
        with pytest.raises(RegistryError, check=coded("missing-content")):
            ask("m", "README.md")
    push(registry, folder)
    assert registry.read("m", "README.md") == FILES["README.md"]


def test_no_blob_is_collected_while_a_manifest_cannot_be_read_and_all_else_is(
    registry: LocalRegistry, folder: Path
) -> None:
    flip(registry.root / "blobs" / push(registry, folder).replace(":", "/"))
    before = sorted(path.name for path in (registry.root / "blobs/sha256").iterdir())
    (registry.root / "ingest" / "dead").mkdir()
    found = registry.collect(dry_run=False)
    assert sorted(path.name for path in (registry.root / "blobs/sha256").iterdir()) == before
    assert (found.blobs, found.temporary, len(found.kept)) == ((), ("ingest/dead",), len(before) - 1)
    (why,) = found.unreadable
    assert why.startswith("m:1: ")
    assert "damaged" in why
    registry.remove(Ref("m", "1"), drop_aliases=True, actor="me", note="its manifest is damaged")
    found = registry.collect(dry_run=False)
    assert (found.unreadable, found.kept, len(found.blobs)) == ((), (), len(before))


@pytest.mark.parametrize("ours", [True, False])
def test_a_manifest_that_names_an_absent_manifest_stops_no_collection(
    registry: LocalRegistry, folder: Path, ours: bool
) -> None:
    """As a release's own extra, it is nothing that a release needs. In another program's entry, nobody knows."""
    absent = {"mediaType": modelpack.MANIFEST_TYPE, "digest": "sha256:" + "0" * 64, "size": 3}
    push(registry, folder)
    manifest = json.loads(blob_of(registry, registry.resolve("m").digest).read_bytes())
    found = {**manifest, "nested": absent} if ours else {"schemaVersion": 2, "manifests": [absent]}
    data = modelpack.canonical(found)
    blob(registry, data).write_bytes(data)

    def added(text: str) -> str:
        index = json.loads(text)
        notes = {"org.opencontainers.image.ref.name": "m:2", "org.qpack.version": "2", modelpack.CREATED: "t"}
        entry = {"mediaType": modelpack.MANIFEST_TYPE, "digest": modelpack.digest_of(data), "size": len(data)}
        index["manifests"].append({**entry, "annotations": notes} if ours else entry)
        return json.dumps(index)

    edit(registry, added)
    rubbish = blob(registry, b"rubbish")
    rubbish.write_bytes(b"rubbish")
    collected = registry.collect(dry_run=False)
    assert len(collected.unreadable) == (0 if ours else 1)
    assert rubbish.exists() != ours
    assert registry.resolve("m").version == "1"


def test_a_signature_of_what_is_gone_stops_no_collection(registry: LocalRegistry, folder: Path) -> None:
    """The specification lets a subject be absent."""
    push(registry, folder)
    gone = {"mediaType": modelpack.MANIFEST_TYPE, "digest": "sha256:" + "0" * 64, "size": 3}
    data = modelpack.referrer(gone, b"x", "x/sig", {})
    for content in (data, b"x", modelpack.EMPTY):
        blob(registry, content).write_bytes(content)
    entry = {"mediaType": modelpack.MANIFEST_TYPE, "digest": modelpack.digest_of(data), "size": len(data)}

    def added(text: str) -> str:
        index = json.loads(text)
        return json.dumps({**index, "manifests": [*index["manifests"], entry]})

    edit(registry, added)
    rubbish = blob(registry, b"rubbish")
    rubbish.write_bytes(b"rubbish")
    assert registry.collect(dry_run=False).unreadable == ()
    assert not rubbish.exists()
    assert blob(registry, b"x").exists()


def test_what_is_attached_changes_no_digest_and_is_never_collected(registry: LocalRegistry, folder: Path) -> None:
    digest = push(registry, folder)
    attached = [registry.attach("m", b"a signature", media_type="x/sig", annotations={}, by=Author("me")) for _ in "12"]
    assert attached[0] == attached[1], "the same again changes nothing"
    registry.attach("m", b"a note", media_type="x/note", annotations={}, by=Author("me"))
    assert registry.resolve("m").digest == digest
    assert registry.attached("m", "x/sig") == (b"a signature",)
    assert [event.what for event in registry.history()] == ["push", "sign", "sign"]
    assert registry.collect(dry_run=False).blobs == ()
    (folder / "README.md").write_bytes(b"# another\n")
    push(registry, folder)
    assert registry.attached("m", "x/sig") == (), "it is about the first version alone"
    assert registry.attached("m:1", "x/note") == (b"a note",)
    manifest = json.loads((registry.root / "blobs" / attached[0].replace(":", "/")).read_bytes())
    size = (registry.root / "blobs" / digest.replace(":", "/")).stat().st_size
    assert manifest["subject"] == {"mediaType": modelpack.MANIFEST_TYPE, "digest": digest, "size": size}
    assert (manifest["artifactType"], manifest["config"]["mediaType"]) == ("x/sig", "application/vnd.oci.empty.v1+json")


def test_a_damaged_signature_is_an_error_and_not_no_signature(registry: LocalRegistry, folder: Path) -> None:
    push(registry, folder)
    registry.attach("m", b"a signature", media_type="x/sig", annotations={}, by=Author("me"))
    flip(blob(registry, b"a signature"))
    with pytest.raises(RegistryError, check=coded("damaged-content")):
        registry.attached("m", "x/sig")


def test_a_link_that_was_damaged_is_not_published_as_something_new(registry: LocalRegistry, folder: Path) -> None:
    push(registry, folder, consume=True)
    before = {record.path: record.sha256 for record in registry.contents("m").files}
    flip(folder / "model/config.json")
    (folder / "README.md").unlink()
    (folder / "README.md").write_bytes(b"# another\n")
    push(registry, folder, consume=True)
    after = {record.path: record.sha256 for record in registry.contents("m:2").files}
    assert {path for path in after if before[path] != after[path]} == {"README.md"}
    with pytest.raises(RegistryError, check=coded("damaged-content")):
        registry.open("m:2", "model/config.json")
    # Now it is known to be damaged, and nothing is made of it any more.
    with pytest.raises(RegistryError, check=coded("damaged-content"), match=r"model/config\.json"):
        push(registry, folder, consume=True)
    (folder / "model/config.json").unlink()
    (folder / "model/config.json").write_bytes(FILES["model/config.json"])
    push(registry, folder, consume=True)
    registry.open("m:1", "model/config.json")


def test_what_was_found_damaged_is_repaired_from_a_copy_that_holds(
    registry: LocalRegistry, folder: Path, tmp_path: Path
) -> None:
    digest = push(registry, folder)
    weights = registry.blob(modelpack.digest_of(FILES["model/model.safetensors"]))
    flip(weights)
    assert not is_suspect(registry, "m"), "nobody has looked yet"
    with pytest.raises(RegistryError, check=coded("damaged-content")):
        registry.pull("m", tmp_path / "pulled")
    assert is_suspect(registry, "m")
    other = write(tmp_path / "other", {**FILES, "model/model.safetensors": b"?"})
    with pytest.raises(Lost, check=coded("damaged-content"), match=r"model/model\.safetensors"):
        repair_release(registry, "m", other)
    assert is_suspect(registry, "m")
    assert "model/model.safetensors" in repair_release(registry, "m", folder)
    assert weights.read_bytes() == FILES["model/model.safetensors"]
    assert not is_suspect(registry, "m")
    assert registry.pull("m", tmp_path / "pulled").digest == digest
    weights.unlink()
    assert is_suspect(registry, "m"), "a lost one is in doubt without anybody looking"


def test_what_is_there_already_is_neither_read_nor_copied(
    registry: LocalRegistry, folder: Path, tmp_path: Path
) -> None:
    other = LocalRegistry(tmp_path / "other")
    push(registry, folder)
    other.put(registry.bundle("m"), PushRequest("m", "1", None, actor="me"))
    (folder / "README.md").write_bytes(b"# another\n")
    push(registry, folder)
    packed = registry.bundle("m:2")
    nowhere = {digest: path for digest, path in packed.sources.items() if path.read_bytes() == b"# another\n"}
    assert len(nowhere) == 1
    moved = replace(packed, sources={**dict.fromkeys(packed.sources, tmp_path / "gone"), **nowhere})
    assert other.put(moved, PushRequest("m", "2", None, actor="me")).digest == registry.resolve("m:2").digest
    assert contents_of(other, tmp_path / "pulled") == {**FILES, "README.md": b"# another\n"}


def contents_of(registry: LocalRegistry, dest: Path) -> dict[str, bytes]:
    registry.pull("m:2", dest)
    return contents(dest)


def test_content_of_the_same_size_is_told_apart(registry: LocalRegistry, tmp_path: Path) -> None:
    for number, data in enumerate((b"1" * 5_000_000, b"1" * 4_999_999 + b"2", b"2" + b"1" * 4_999_999)):
        push(registry, write(tmp_path / str(number), {"a": data, "b": data}))
        assert registry.read(f"m:{number + 1}", "b") == data
    assert len(registry.list()) == 3


def test_a_lost_index_is_an_error_and_not_an_empty_registry(registry: LocalRegistry, folder: Path) -> None:
    push(registry, folder)
    (registry.root / "index.json").unlink()
    for ask in (lambda: registry.collect(dry_run=False), lambda: push(registry, folder), lambda: registry.list()):
        with pytest.raises(RegistryError, check=coded("missing-content")):
            ask()


def test_collecting_removes_what_killed_pushes_left(registry: LocalRegistry, folder: Path) -> None:
    push(registry, folder)
    stray = blob(registry, b"stray")
    stray.write_bytes(b"stray")
    (registry.root / "ingest/dead").mkdir()
    (registry.root / "ingest/dead/0").write_bytes(b"half")
    planned = registry.collect(dry_run=True)
    assert stray.exists()
    assert planned.bytes_freed == len(b"stray") + len(b"half")
    assert registry.collect(dry_run=False) == planned.model_copy(update={"dry_run": False})
    assert not stray.exists()
    assert list((registry.root / "ingest").iterdir()) == []


def test_a_history_line_that_was_lost_or_torn_comes_back(registry: LocalRegistry, folder: Path) -> None:
    push(registry, folder)
    registry.alias(AliasMove("m", "prod", "1", actor="me"))
    path = registry.root / "history.jsonl"
    events, whole = registry.history(), path.read_bytes()
    second = whole.index(b"\n") + 1
    for kept in (second, second + 20, len(whole) - 1):
        path.write_bytes(whole[:kept])
        assert registry.history() == events
        moved = "2nd" if kept == second else f"a{kept}"
        registry.alias(AliasMove("m", moved, "1", actor="me"))
        assert registry.history()[:2] == events
        registry.alias(AliasMove("m", "prod", "1", actor="me"))
        path.write_bytes(whole)
        index = json.loads((registry.root / "index.json").read_text())
        index["annotations"]["org.qpack.last-event"] = events[-1].model_dump_json()
        edit(registry, lambda _, index=index: json.dumps(index))


def test_a_manifest_with_a_path_that_leads_out_is_not_pulled(
    registry: LocalRegistry, folder: Path, tmp_path: Path
) -> None:
    digest = push(registry, folder)
    manifest = json.loads((registry.root / "blobs" / digest.replace(":", "/")).read_bytes())
    manifest["layers"][0]["annotations"]["org.cncf.model.filepath"] = "../escaped"
    evil = modelpack.canonical(manifest)
    blob(registry, evil).write_bytes(evil)
    edit(registry, lambda text: text.replace(digest, modelpack.digest_of(evil)))
    with pytest.raises(RegistryError, check=coded("not-a-release"), match=r"\.\./escaped"):
        registry.pull("m", tmp_path / "pulled")
    assert not (tmp_path / "escaped").exists()


def test_a_file_size_limit_is_an_error_that_publishes_nothing(registry: LocalRegistry, folder: Path) -> None:
    push(registry, write(folder, {"README.md": b"first"}))
    write(folder, {"model/big.safetensors": b"x" * 3_000_000})
    code = (
        "import resource, sys; from pathlib import Path; from registry.local.registry import LocalRegistry\n"
        "from qpack.core.errors import RegistryError; from registry.core.protocol import PushRequest\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
        "request = PushRequest('m', None, None, actor='a')\n"
        "try: LocalRegistry(Path(sys.argv[1])).push(Path(sys.argv[2]), request, annotations={})\n"
        "except RegistryError as error: print(error.what, error.hint)\n"
    )
    command = [sys.executable, "-c", code, str(registry.root), str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "no space left" in done.stdout
    assert "Nothing was changed" in done.stdout
    assert [resolved.version for resolved in registry.list()] == ["1"]
    assert registry.collect(dry_run=True).bytes_freed == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 3 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk can't be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_publishes_all_or_nothing_wherever_it_strikes(small_disk: Path, tmp_path: Path) -> None:
    registry = LocalRegistry(small_disk / "registry")
    small = {"model/config.json": b"{}", "model/model.safetensors": b"1" * 9000}
    push(registry, write(tmp_path / "first", small))
    outcomes = set()
    for free_pages in range(16):
        folder = write(tmp_path / "next", {**small, "README.md": b"%d" % free_pages, "a": b"%d" % free_pages * 4000})
        before = registry.list(), registry.history()
        room = os.statvfs(small_disk)
        filler = small_disk / "filler"
        filler.write_bytes(b"x" * (room.f_bavail - free_pages) * room.f_bsize)
        refused = None
        try:
            push(registry, folder)
        except RegistryError as error:
            refused = error.what
        outcomes.add(refused is None)
        if refused is None:
            assert len(registry.list()) == len(before[0]) + 1
        else:
            assert "no space left" in refused
            assert (registry.list(), registry.history()) == before
            assert registry.collect(dry_run=True).bytes_freed == 0
        filler.unlink()
        push(registry, folder)
        assert len(registry.history()) == len(registry.list())
    assert outcomes == {True, False}


def test_a_full_disk_leaves_no_half_pulled_folder(small_disk: Path, registry: LocalRegistry, tmp_path: Path) -> None:
    push(registry, write(tmp_path / "big", {"a": b"1" * 2_000_000, "b": b"2" * 2_000_000}))
    with pytest.raises(RegistryError, check=coded("disk-full")):
        registry.pull("m", small_disk / "pulled")
    assert list(small_disk.iterdir()) == []


def test_a_read_only_disk_can_be_read_but_not_written(small_disk: Path, folder: Path, tmp_path: Path) -> None:
    registry = LocalRegistry(small_disk / "registry")
    push(registry, folder)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert registry.resolve("m").version == "1"
    registry.pull("m", tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == FILES
    for ask in (
        lambda: push(registry, write(folder, {"README.md": b"new"})),
        lambda: registry.alias(AliasMove("m", "prod", "1", actor="me")),
        lambda: registry.collect(dry_run=False),
        lambda: registry.pull("m", small_disk / "pulled"),
    ):
        with pytest.raises(RegistryError, check=coded("file-system"), match="Read-only") as caught:
            ask()
        assert "another folder" in caught.value.hint


def test_a_file_where_the_registry_should_be_is_an_error(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RegistryError):
        push(LocalRegistry(tmp_path / "file"), folder)
    with pytest.raises(RegistryError, check=coded("no-such-release")):
        LocalRegistry(tmp_path / "file").resolve("m")


def test_collecting_waits_for_a_running_push(registry: LocalRegistry, folder: Path, tmp_path: Path) -> None:
    push(registry, folder)
    write(folder, {"model/big.safetensors": os.urandom(20_000_000)})
    with pushing("local", str(registry.root), folder, "m") as process:
        while process.poll() is None:
            registry.collect(dry_run=False)
        assert process.returncode == 0, process.communicate()[1]
    registry.pull("m:2", tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == contents(folder)


def leftovers(registry: LocalRegistry) -> list[Path]:
    """What is in a registry and isn't of it."""
    return [*registry.root.rglob("*.part"), *(registry.root / "ingest").glob("*")]


def test_what_a_killed_publication_leaves_is_removed_by_the_next_one(registry: LocalRegistry, tmp_path: Path) -> None:
    """Killed before random steps of the first publication of all, which makes the registry; nothing is collected."""
    files = {"a": b"a", "b": b"b"}
    with pushing("local", str(registry.root), write(tmp_path / "made", files), "m", kill_at=0) as process:
        steps = int(process.communicate(timeout=PATIENCE)[0].split()[0])
    seen = set()
    for kill_at in random.Random(1).sample(range(1, steps + 1), 16):
        shutil.rmtree(registry.root)
        with pushing("local", str(registry.root), write(tmp_path / "made", files), "m", kill_at=kill_at) as process:
            process.communicate(timeout=PATIENCE)
        seen |= {path.name for path in leftovers(registry)}
        push(registry, write(tmp_path / "next", {"a": b"another"}))
        assert leftovers(registry) == [], f"killed before step {kill_at} of {steps}"
    assert any(name.endswith(".part") for name in seen), "kills strike in the middle of writes"
    assert len(seen) > 2


def test_what_a_killed_pull_leaves_is_removed_by_the_next_one_to_the_same_folder(
    registry: LocalRegistry, folder: Path, tmp_path: Path
) -> None:
    push(registry, folder)
    dest, digest = tmp_path / "out" / "pulled", registry.resolve("m").digest
    draft = draft_of(dest, digest)
    for left in (draft, draft_of(dest, "sha256:" + "0" * 64)):
        left.mkdir(parents=True)
        (left / "half").write_bytes(b"half")
    registry.pull("m", dest)
    assert contents(dest) == FILES
    assert [path.name for path in dest.parent.iterdir()] == ["pulled"]


def test_a_draft_whose_maker_lives_is_left_alone(registry: LocalRegistry, folder: Path) -> None:
    push(registry, folder)
    with registry._blobs.draft() as first:
        (first / "0").write_bytes(b"half")
        with registry._blobs.draft() as second:
            assert (first / "0").read_bytes() == b"half"
            assert second != first
    assert leftovers(registry) == []


@pytest.mark.parametrize("length", [1, 201, 255])
def test_a_folder_may_have_any_name_that_the_disk_takes(
    registry: LocalRegistry, folder: Path, tmp_path: Path, length: int
) -> None:
    push(registry, folder)
    registry.pull("m", tmp_path / "out" / ("x" * length))
    assert contents(tmp_path / "out" / ("x" * length)) == FILES


@pytest.mark.parametrize("name", ["x" * 256, "x/" * 3000, ".", "/", "..", "here/..", "folder/README.md/x"])
def test_a_folder_that_cannot_be_made_is_an_error(
    registry: LocalRegistry, folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(registry, folder)
    (tmp_path / "empty" / "here").mkdir(parents=True)
    (tmp_path / "empty" / "folder").symlink_to(folder)
    monkeypatch.chdir(tmp_path / "empty")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(RegistryError):
        registry.pull("m", Path(name))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


WORK_OF_A_PUSH = """
import os, sys
from pathlib import Path
from registry.core.protocol import PushRequest
from registry.local.changes import Author
from registry.local.registry import LocalRegistry
registry = LocalRegistry(Path(sys.argv[1]))
request = PushRequest("m", None, "latest", actor="me", consume=True)
def work():
    with open("/proc/self/io") as file:
        counted = dict(line.split(": ") for line in file)
    return int(counted["rchar"]), int(counted["syscr"])
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
before = work()
registry.push(Path(sys.argv[2]), request, annotations={})
after = work()
print(after[0] - before[0], after[1] - before[1], len(opened), (registry.root / "index.json").stat().st_size)
"""


def test_the_work_of_a_push_grows_by_the_index_alone(registry: LocalRegistry, tmp_path: Path) -> None:
    """As many files are opened, and as many pieces read, with 120 versions as with 2; the index is read three times."""

    def work(number: int) -> tuple[int, int, int, int]:
        folder = write(tmp_path / f"next-{number}", {"a": b"%d" % number, "b": b"b"})
        command = [sys.executable, "-c", WORK_OF_A_PUSH, str(registry.root), str(folder)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        read, pieces, opened, size = map(int, done.stdout.split())
        return read, pieces, opened, size

    push(registry, write(tmp_path / "first", {"a": b"first", "b": b"b"}))
    few = work(0)
    for number in range(1, 120):
        push(registry, write(tmp_path / "many", {"a": b"%d" % -number, "b": b"b"}))
    many = work(120)
    assert many[2] == few[2]
    assert many[1] <= few[1] + 12
    assert many[0] - few[0] <= 3 * (many[3] - few[3]) + 200_000
    assert many[3] <= 122 * 1000


@pytest.mark.parametrize("what", ["index.json", "history.jsonl", "manifest", "config", "blob"])
def test_a_pipe_in_place_of_a_file_of_the_registry_is_an_error_at_once(
    registry: LocalRegistry, folder: Path, tmp_path: Path, what: str
) -> None:
    """Opened as a file it waits for whoever writes to it, for ever."""
    push(registry, folder)
    manifest = json.loads(blob_at(registry, registry.resolve("m").digest).read_bytes())
    path = {
        "manifest": blob_at(registry, registry.resolve("m").digest),
        "config": blob_at(registry, manifest["config"]["digest"]),
        "blob": blob(registry, FILES["model/config.json"]),
    }.get(what, registry.root / what)
    path.unlink()
    os.mkfifo(path)
    reads = """
import sys
from pathlib import Path
from qpack.core.errors import RegistryError
from registry.local.changes import Author
from registry.local.registry import LocalRegistry
local = LocalRegistry(Path(sys.argv[1]))
for call in (
    lambda: local.list(), lambda: local.contents("m"), lambda: local.config("m"), lambda: local.history("m"),
    lambda: local.open("m", "model/config.json"), lambda: local.read("m", "model/config.json"),
    lambda: local.pull("m", Path(sys.argv[2])), lambda: local.bundle("m"),
):
    try:
        call()
    except RegistryError as error:
        print(error.what)
"""
    done = subprocess.run(
        [sys.executable, "-c", reads, registry.root, tmp_path / "out"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "pipe" in done.stdout or "lost" in done.stdout


def blob_at(registry: LocalRegistry, digest: str) -> Path:
    return registry.root / "blobs/sha256" / digest.removeprefix("sha256:")
