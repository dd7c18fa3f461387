"""Releases that were changed after they were made: found by verify, and refused by all that would use them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tests.unit.registry_examples as examples
from qpack.core.errors import RegistryError
from qpack.core.records import Release
from qpack.core.store import Store
from qpack.pipeline.rejudge import rejudge
from qpack.serve import served_release
from registry.core.protocol import AliasMove, PushRequest
from registry.lifecycle import promotion
from registry.lifecycle.verification import verify
from registry.local.registry import LocalRegistry
from tests.scenarios.command import Qpack
from tests.unit.laid_out import laid_out

Change = Callable[[Path], None]


def json_of(name: str, *changes: tuple[str, Any]) -> Change:
    """Set values at dotted places of a JSON file."""

    def change(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        for place, value in changes:
            *parents, last = [int(part) if part.isdigit() else part for part in place.split(".")]
            at = data
            for part in parents:
                at = at[part]
            at[last] = value
        (folder / name).write_text(json.dumps(data))

    return change


def added(name: str, text: str = "print('owned')\n") -> Change:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return change


def weights(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"evil")


CHANGES: dict[str, tuple[str, Change]] = {
    "other weights": ("weights", weights),
    "another release's digest": ("evidence", json_of("serving.json", ("model.digest", "f" * 64))),
    "a module at the top": ("files", added("torch.py")),
    "a hook of Python": ("files", added("sitecustomize.py")),
    "a package at the top": ("files", added("vllm/__init__.py")),
    "a module beside the model": ("files", added("model/json.py")),
    "a file that isn't listed": ("files", added("model/generation_config.json", "{}")),
    "a pickle": ("files", added("model/pytorch_model.bin")),
    "other evidence": ("figures", json_of("release.json", ("artifact.memory.weights_bytes", 1))),
    "another figure": ("figures", json_of("release.json", ("comparison.accuracy_drop.value", -0.5))),
    "another bound": ("verdict", json_of("release.json", ("verdict.gates.0.bound", 9.0))),
    "no gate": ("verdict", json_of("release.json", ("verdict.gates", []))),
    "a recipe without gates": ("verdict", json_of("release.json", ("recipe", {}))),
    "no JSON": ("manifests", added("release.json", "[" * 100_000)),
    "no serving manifest": ("manifests", added("serving.json", "\x00")),
    "other provenance": ("provenance", json_of("provenance.json", ("subject.0.digest.sha256", "0" * 64))),
    "no recipe": ("recipe", added("recipe.yaml", "name: other\n")),
}


def released(local: LocalRegistry, scratch: Path, change: Change, made: Release | None = None) -> str:
    """Publish such a release as a stranger does, and return its version."""
    folder, notes = laid_out(scratch, len(local.list()), made)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        data = path.read_bytes()  # no longer the artifact's own file: it may be linked
        path.unlink()
        path.write_bytes(data)
    change(folder)
    published = local.push(folder, PushRequest("m", None, None, actor="mallory"), annotations=notes)
    return published.version


@pytest.mark.parametrize("name", CHANGES)
def test_a_release_that_was_changed_is_found_and_not_used(name: str, tmp_path: Path) -> None:
    what, change = CHANGES[name]
    local, store = LocalRegistry(tmp_path / "registry"), Store(tmp_path / "home")
    ref = f"m:{released(local, tmp_path / 'scratch', change)}"
    wrong = {part.what for part in verify(local, ref, rejudge).parts if part.ok is False}
    assert what in wrong
    demands = promotion.Demands((), lambda *_: False, rejudge)
    for use in (
        lambda: promotion.promote(local, ref, "production", demands, actor="me", why=""),
        lambda: served_release.pull(store, local.root, served_release.find(local.root, ref)),
    ):
        with pytest.raises(RegistryError):
            use()
    assert not [found for found in local.list() if found.aliases]
    assert not (tmp_path / "home" / "store").exists()


@pytest.mark.parametrize("name", ["other weights", "a module at the top", "no gate", "no JSON"])
def test_the_command_line_says_what_was_changed_and_starts_nothing(name: str, qpack: Qpack, tmp_path: Path) -> None:
    what, change = CHANGES[name]
    version = released(LocalRegistry(qpack.home / "registry"), tmp_path / "scratch", change)
    found = qpack("verify", f"m:{version}", "--json")
    assert found.code == 8, found.err
    assert what in {finding["what"] for finding in json.loads(found.out)["findings"] if finding["ok"] is False}
    served = qpack("serve", f"m:{version}", "--trust-release")
    assert served.code == 8, served.err
    # A server would be started next: no environment is there to start one from.
    assert not (qpack.home / "store").exists()
    assert not (qpack.home / "envs").exists()


def test_a_verdict_that_lies_is_neither_served_nor_promoted_nor_rolled_back_to(qpack: Qpack, tmp_path: Path) -> None:
    """A release whose gate failed, told as one that passed; its annotations too."""
    local = LocalRegistry(qpack.home / "registry")
    failed = examples.release(failed=True)
    gate = failed.verdict.gates[0].model_copy(update={"outcome": "pass", "why": "It is fine."})
    verdict = failed.verdict.model_copy(update={"outcome": "pass", "gates": (gate,)})
    lied = released(
        local, tmp_path / "lied", lambda _: None, failed.model_copy(update={"verdict": verdict, "forced": False})
    )
    good = released(local, tmp_path / "good", lambda _: None)
    assert qpack("verify", f"m:{good}").code == 0
    for version in (lied, good):
        local.alias(AliasMove("m", "production", version, actor="mallory"))
    for command in (("verify", f"m:{lied}"), ("promote", f"m:{lied}", "production"), ("rollback", "m", "production"),
                    ("chat", f"m:{lied}", "Hello")):  # fmt: skip
        refused = qpack(*command)
        assert refused.code == 8, (command, refused.err)
        assert "error[other-verdict] verdict: flip_rate: 'pass', recomputed 'fail'" in refused.err
    assert local.resolve("m:production").version == good


def test_files_that_no_release_has_are_neither_pulled_nor_sent_on(qpack: Qpack, tmp_path: Path) -> None:
    local = LocalRegistry(qpack.home / "registry")
    version = released(local, tmp_path / "scratch", added("torch.py"))
    for command in (("pull", f"m:{version}", "out"), ("publish", f"m:{version}", "--to", "./elsewhere")):
        refused = qpack(*command)
        assert refused.code == 8, refused.err
        assert "error[foreign-file] torch.py: " in refused.err
    assert not [name for name in ("out", "elsewhere") if (qpack.cwd / name).exists()]


def test_a_report_is_written_here_whatever_the_release_calls_itself(qpack: Qpack, tmp_path: Path) -> None:
    local = LocalRegistry(qpack.home / "registry")
    released(local, tmp_path / "scratch", json_of("release.json", ("name", "../../../escaped")))
    assert qpack("report", "m:1").code == 0
    assert (qpack.cwd / "release-report.html").is_file()


@pytest.mark.parametrize("recipe", [{}, {"model": "x"}, {"model": []}])
def test_a_rebuild_of_a_release_without_a_model_is_an_error_of_its_recipe(
    recipe: dict[str, Any], qpack: Qpack, tmp_path: Path
) -> None:
    local = LocalRegistry(qpack.home / "registry")
    released(local, tmp_path / "scratch", json_of("release.json", ("recipe", recipe)))
    refused = qpack("reproduce", "m:1")
    assert refused.code == 2, refused.err
    assert "recipe.yaml:" in refused.err
