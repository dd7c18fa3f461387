"""The local registry from the command line: removals, odd folders, damage, and a disk without locks."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from registry.local.registry import LocalRegistry
from tests.patience import PATIENCE
from tests.scenarios import without_locks
from tests.scenarios.command import Finished, Qpack
from tests.unit.laid_out import publish


@pytest.fixture
def local(qpack: Qpack) -> LocalRegistry:
    """Two releases, `m:1` and `m:2`; `latest` points at the second."""
    found = LocalRegistry(qpack.home / "registry")
    for number in (1, 2):
        publish(found, "m", qpack.home / f"release-{number}", number)
    return found


def test_a_version_is_removed_with_a_reason_and_gc_frees_it(qpack: Qpack, local: LocalRegistry) -> None:
    assert qpack("remove", "m:1").code == 2, "a reason is needed"
    refused = qpack("remove", "m:2", "--why", "it stutters")
    assert (refused.code, refused.out) == (8, "")
    assert "registry[aliased-version]" in refused.err
    done = qpack("remove", "m:1", "--why", "it stutters", "--json")
    assert (done.code, json.loads(done.out)["version"]) == (0, "1")
    assert qpack("show", "m:1").code == 8
    assert "it stutters" in qpack("show", "m:1").err
    assert json.loads(qpack("gc", "--json").out)["blobs"]
    dropped = qpack("remove", "m:2", "--why", "it stutters too", "--drop-aliases")
    assert (dropped.code, "latest" in dropped.out) == (0, True)
    events = json.loads(qpack("history", "--json").out)
    assert [(e["what"], e["version"], e["note"]) for e in events[2:]] == [
        ("remove", "1", "it stutters"),
        ("remove", "2", "it stutters too"),
    ]
    assert "latest (dropped)" in qpack("history", "m").out, "what is gone has a history"
    assert qpack("history", "n").code == 8
    assert local.list() == ()


@pytest.mark.parametrize(
    "ref", ["m:latest", "m", "n:1", "m:3", "hf://org/m@1", "oci://127.0.0.1:1/m:1", "./folder", ""]
)
def test_what_names_no_version_is_exit_8_and_removes_nothing(qpack: Qpack, local: LocalRegistry, ref: str) -> None:
    done = qpack("remove", ref, "--why", "why", "--drop-aliases")
    assert (done.code, done.out) == (8, "")
    assert len(local.list()) == 2


@pytest.mark.parametrize("damage", ["lost", "damaged", "a folder"])
def test_a_manifest_that_cannot_be_read_is_a_row_of_the_list_and_stops_nothing_else(
    qpack: Qpack, local: LocalRegistry, damage: str
) -> None:
    other = LocalRegistry(qpack.home / "other")
    publish(other, "m", qpack.home / "release-3", 3)
    blob = local.blob(local.resolve("m:1").digest)
    blob.unlink()
    if damage == "damaged":
        blob.write_bytes(b"{}")
    elif damage == "a folder":
        blob.mkdir()
    done = qpack("list")
    assert (done.code, done.out.count("m:1"), done.out.count("m:2")) == (8, 1, 1)
    assert "m:1" in done.err
    assert "m:2" not in done.err
    done = qpack("list", "--json")
    rows = {row["version"]: row for row in json.loads(done.out)}
    assert (done.code, bool(rows["1"]["unreadable"]), rows["2"]["unreadable"]) == (8, True, "")
    assert rows["2"]["aliases"] == ["latest"]
    assert qpack("show", "m:1").code == 8
    assert qpack("show", "m:2").code == qpack("verify", "m:2").code == 0
    assert qpack("publish", "m:2", "--to", str(qpack.home / "other")).code == 0
    assert qpack("remove", "m:1", "--why", "lost").code == 0
    assert qpack("list").code == 0


def test_gc_says_which_release_it_cannot_judge_and_a_removal_mends_that(qpack: Qpack, local: LocalRegistry) -> None:
    local.blob(local.resolve("m:1").digest).unlink()
    done = qpack("gc")
    assert done.code == 0
    assert "m:1: " in done.err
    assert "`qpack remove`" in done.err
    assert qpack("remove", "m:1", "--why", "its manifest is lost").code == 0
    done = qpack("gc", "--json")
    assert (done.code, json.loads(done.out)["unreadable"]) == (0, [])


def test_gc_removes_a_pull_that_broke_off(qpack: Qpack, local: LocalRegistry) -> None:
    left = qpack.home / "pulls" / ("0" * 32)
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"half")
    assert str(left) in json.loads(qpack("gc", "--dry-run", "--json").out)["temporary"]
    assert left.exists()
    assert qpack("gc").code == 0
    assert not left.exists()
    assert len(local.list()) == 2


@pytest.mark.parametrize("folder", ["x" * 256, "x" * 5000, ".", "/", "..", "/dev/null", "/proc/nothing"])
def test_a_folder_that_cannot_be_made_is_exit_8(qpack: Qpack, local: LocalRegistry, folder: str) -> None:
    done = qpack("pull", "m:1", folder)
    assert (done.code, done.out) == (8, "")
    assert len(local.list()) == 2


def test_a_folder_of_the_longest_name_is_pulled_to(qpack: Qpack, local: LocalRegistry) -> None:
    assert qpack("pull", "m:1", "x" * 255).code == 0
    assert (qpack.cwd / ("x" * 255) / "release.json").read_bytes() == local.read("m:1", "release.json")


@pytest.mark.skipif(platform.machine() not in without_locks.MACHINES, reason="the filter is written for two machines")
def test_a_file_system_without_locks_is_read_and_never_written(qpack: Qpack, local: LocalRegistry) -> None:
    before = (local.root / "index.json").read_bytes()

    def run(*arguments: str) -> Finished:
        command = [sys.executable, str(Path(without_locks.__file__)), *arguments]
        done = subprocess.run(
            command,
            env=qpack.environment(),
            cwd=qpack.cwd,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    for arguments in (["list"], ["show", "m"], ["history"], ["verify", "m:1"]):
        assert run(*arguments).code == 0, arguments
    for code, arguments in (
        (8, ["alias", "m:1", "prod"]),
        (8, ["remove", "m:1", "--why", "why"]),
        (8, ["promote", "m:1", "prod"]),
        (8, ["gc"]),
        (8, ["pull", "m:1", "folder"]),
        (8, ["publish", "m:1", "--to", "./other"]),
        (3, ["reproduce", "m:1"]),
    ):
        done = run(*arguments)
        assert (done.code, done.out) == (code, ""), (arguments, done.err)
        assert "[no-locks]" in done.err
    assert (local.root / "index.json").read_bytes() == before
    assert not (qpack.cwd / "folder").exists()
