"""Releases in a real MLflow server: what its own client finds there, writers at once, kills, logins."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import tests.unit.registry_examples as examples
from qpack.core.errors import RegistryError
from qpack.runtime import environments
from registry.core import modelpack
from registry.core.bundle import Attachment
from registry.core.protocol import AliasMove, PushRequest, Ref
from registry.local.registry import LocalRegistry
from registry.mlflow.registry import MlflowRegistry
from registry.registries import Place, open_mlflow
from tests.codes import coded
from tests.contract.mlflow_server import MLFLOW
from tests.contract.registries_contract import FILES, contents, pushing, write
from tests.scenarios.command import Qpack
from tests.unit.laid_out import laid_out

pytestmark = pytest.mark.engines


@pytest.fixture
def registry(empty_mlflow: str) -> Iterator[MlflowRegistry]:
    with closing(open_mlflow(empty_mlflow)) as found:
        yield found


def push(registry: MlflowRegistry, folder: Path, name: str = "m", version: str | None = None) -> str:
    return registry.push(folder, PushRequest(name, version, "latest", actor="me"), annotations={}).version


CLIENT = """
import json, sys, mlflow
mlflow.set_tracking_uri(sys.argv[1])
client = mlflow.MlflowClient()
version = client.get_model_version_by_alias("org~small", "current")
run = client.get_run(version.run_id)
folder = mlflow.artifacts.download_artifacts(artifact_uri="models:/org~small@current", dst_path=sys.argv[2])
print(json.dumps({"tags": version.tags, "metrics": run.data.metrics, "params": run.data.params,
                  "status": run.info.status, "folder": folder, "gates": run.data.tags}))
"""


def test_mlflow_s_own_client_finds_the_model_and_its_evidence(
    registry: MlflowRegistry, engine_home: Path, tmp_path: Path
) -> None:
    folder, notes = laid_out(tmp_path)
    digest = registry.push(folder, PushRequest("org/small", "1", "latest", actor="me"), annotations=notes).digest
    python = environments.resolve(MLFLOW, "cpu", engine_home).python
    (tmp_path / "there").mkdir()
    command = [python, "-c", CLIENT, registry.client.base, tmp_path / "there"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    release = examples.release()
    assert found["tags"]["qpack.digest"] == digest
    assert found["status"] == "FINISHED"
    assert found["params"]["scheme"] == release.quantized.scheme
    assert found["metrics"]["perplexity"] == pytest.approx(release.comparison.perplexity_artifact)
    (task, *_) = release.artifact.accuracy.tasks
    right = [sample.score for sample in task.samples]
    assert found["metrics"][f"accuracy/{task.task}"] == pytest.approx(sum(right) / len(right))
    assert found["gates"]["qpack.verdict"] == release.verdict.outcome
    assert contents(Path(found["folder"])) == contents(folder / "model"), "the model alone, as loaders expect it"


def test_writers_at_once_each_get_a_version_of_their_own(
    registry: MlflowRegistry, empty_mlflow: str, tmp_path: Path
) -> None:
    expected = {str(n): {**FILES, "model/config.json": b"%d" % n} for n in range(3)}
    folders = [write(tmp_path / name, files) for name, files in expected.items()]
    running = [pushing("mlflow", empty_mlflow, folder, "m") for folder in (*folders, *folders)]
    results = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0] * 6, results
    found = registry.list("m")
    assert len(found) == 3
    for number, one in enumerate(found):
        registry.pull(one, tmp_path / f"pulled-{number}")
        assert contents(tmp_path / f"pulled-{number}") in expected.values()
    assert sorted(out.split()[2] for out, _ in results).count("False") == 3


def test_a_killed_push_leaves_no_version_or_a_whole_one(
    registry: MlflowRegistry, empty_mlflow: str, tmp_path: Path
) -> None:
    kills = 5

    def attempt(number: int, kill_at: int) -> tuple[int, str]:
        folder = write(tmp_path / "next", {**FILES, "model/config.json": b"%d" % number})
        with pushing("mlflow", empty_mlflow, folder, "m", kill_at=kill_at) as process:
            out, err = process.communicate(timeout=300)
        shutil.rmtree(folder)
        assert process.returncode in (0, -9), err
        return process.returncode, out

    steps = int(attempt(0, 0)[1].split()[0])
    codes = [attempt(number, number * steps // (kills + 1))[0] for number in range(1, kills + 1)]
    assert -9 in codes
    found = registry.list("m")
    for number, one in enumerate(found):
        registry.pull(one, tmp_path / f"pulled-{number}")
        assert set(contents(tmp_path / f"pulled-{number}")) == set(FILES)
    assert attempt(kills + 1, -1)[0] == 0
    assert len(registry.list("m")) == len(found) + 1


def test_what_is_attached_travels_with_the_release(registry: MlflowRegistry, tmp_path: Path) -> None:
    local = LocalRegistry(tmp_path / "local")
    digest = local.push(write(tmp_path / "r", FILES), PushRequest("m", "1", None, actor="me"), annotations={}).digest
    bundle = local.bundle("m:1")
    subject = {"mediaType": modelpack.MANIFEST_TYPE, "digest": digest, "size": len(bundle.manifest)}
    manifest = modelpack.referrer(subject, b"signed", "application/vnd.example.signature", {})
    attached = Attachment(manifest, {modelpack.digest_of(b"signed"): b"signed"})
    registry.put(bundle, PushRequest("m", "1", "latest", actor="me"))
    again = registry.put(replace(bundle, attached=(attached,)), PushRequest("m", "1", "latest", actor="me"))
    assert again.already_there
    (tmp_path / "fetched").mkdir()
    assert registry.fetch_bundle("m", tmp_path / "fetched").attached == (attached,)


def test_a_removed_version_is_gone_with_its_aliases(registry: MlflowRegistry, tmp_path: Path) -> None:
    folder = write(tmp_path / "r", FILES)
    push(registry, folder)
    with pytest.raises(RegistryError, check=coded("aliased-version")):
        registry.remove(Ref("m", "1"), drop_aliases=False, actor="me", note="")
    assert registry.remove(Ref("m", "1"), drop_aliases=True, actor="me", note="wrong").dropped == ("latest",)
    assert registry.list() == ()


@pytest.mark.parametrize("alias", ["current", "v1", "a.b"])
def test_an_alias_that_mlflow_can_t_have_is_refused_before_anything_is_sent(
    registry: MlflowRegistry, tmp_path: Path, alias: str
) -> None:
    folder = write(tmp_path / "r", FILES)
    with pytest.raises(RegistryError, check=coded("invalid-name")):
        registry.push(folder, PushRequest("m", None, alias, actor="me"), annotations={})
    assert registry.list() == ()
    push(registry, folder)
    with pytest.raises(RegistryError, check=coded("invalid-name")):
        registry.alias(AliasMove("m", alias, "1", actor="me"))


def test_models_of_others_are_no_releases(registry: MlflowRegistry, tmp_path: Path) -> None:
    base = f"{registry.client.base}/api/2.0/mlflow"
    for name in ("theirs", "With Capitals"):
        httpx.post(f"{base}/registered-models/create", json={"name": name}).raise_for_status()
        more = {"name": name, "source": "s3://bucket/model"}
        httpx.post(f"{base}/model-versions/create", json=more).raise_for_status()
    push(registry, write(tmp_path / "r", FILES))
    assert [one.name for one in registry.list()] == ["m"]
    with pytest.raises(RegistryError):
        registry.resolve("theirs:1")


def test_a_file_that_was_changed_on_the_server_is_not_taken(
    registry: MlflowRegistry, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    push(registry, write(tmp_path / "r", FILES))
    changed = 0
    for path in tmp_path_factory.getbasetemp().rglob("artifacts/**/*.safetensors"):
        path.write_bytes(b"x" * path.stat().st_size)
        changed += 1
    assert changed
    with pytest.raises(RegistryError):
        registry.pull("m", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_a_server_that_is_not_there_or_no_mlflow_is_an_error_without_secrets(
    oci_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    for host in ("127.0.0.1:9", oci_server.host):
        with closing(MlflowRegistry(replace(open_mlflow(host).client, wait=lambda _: None))) as there:
            with pytest.raises(RegistryError) as caught:
                there.resolve("m")
        assert host in caught.value.what
        assert "hunter2" not in f"{caught.value}{caught.value.hint}"


def test_a_place_names_server_and_release() -> None:
    found = Place.parse("mlflow://mlflow.example.com:5000/org/m:prod")
    assert (found.kind, found.at, str(found.ref)) == ("mlflow", "mlflow.example.com:5000", "org/m:prod")
    with pytest.raises(RegistryError):
        Place.parse("mlflow://mlflow.example.com")


def test_the_command_line_publishes_to_mlflow_and_pulls_from_it(empty_mlflow: str, tmp_path: Path) -> None:
    folder, notes = laid_out(tmp_path)
    for home in ("here", "there"):
        (tmp_path / home).mkdir()
    here, there = (Qpack(tmp_path / home, tmp_path, {}) for home in ("here", "there"))
    local = LocalRegistry(here.home / "registry")
    digest = local.push(folder, PushRequest("small", "1", "latest", actor="me"), annotations=notes).digest
    place = f"mlflow://{empty_mlflow}/org/small"
    sent = here("publish", "small", "--to", place, "--alias", "production", "--json")
    assert sent.code == 0, sent.err
    assert json.loads(sent.out)["digest"] == digest
    pulled = there("pull", f"{place}:production")
    assert pulled.code == 0, pulled.err
    assert [one["digest"] for one in json.loads(there("list", "--json").out)] == [digest]
    unknown = there("pull", f"{place}:prodution")
    assert (unknown.code, "'production'" in unknown.err) == (8, True)
