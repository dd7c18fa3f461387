"""A release rebuilt from what it says of itself: the real worker on a small model, against a registry."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from qpack.core.console import open_console
from qpack.core.hashing import digest_tree
from qpack.core.store import Store
from qpack.pipeline import plan
from qpack.pipeline.context import Context
from qpack.pipeline.run import run
from qpack.pipeline.stages import fetch, hold_out, quantize
from qpack.pipeline.state import Build
from qpack.recipe import recipe_file
from registry.core.protocol import PushRequest
from registry.local.registry import LocalRegistry
from tests.scenarios.command import Qpack
from tests.scenarios.conftest import lay_out
from tests.unit.laid_out import laid_out_as
from tests.unit.registry_examples import release

pytestmark = [pytest.mark.engines, pytest.mark.slow("a release rebuilt by the engine that made it")]


@pytest.fixture(scope="module")
def made(tiny_model: Path, engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Qpack, Build]:
    """A home in which the tiny model was quantized; its server was never started."""
    qpack = lay_out(tmp_path_factory.mktemp("reproduce") / "folder", tiny_model, engine_home)
    store = Store(qpack.home)
    planned = plan.make(recipe_file.load(qpack.cwd / "recipe.yaml"), store, thorough=True)
    with open_console() as console:
        built = Build(planned, Context(store, qpack.home / "registry", console))
        return qpack, run(built, (fetch.STAGE, hold_out.STAGE, quantize.STAGE))


def publish(made: tuple[Qpack, Build], scratch: Path, name: str, change: str = "") -> None:
    """A release of that artifact, with made-up evidence; `change` damages the artifact first."""
    qpack, built = made
    entry = built.require(quantize.QUANTIZED)
    artifact = scratch / name / "artifact"
    shutil.copytree(entry.folder / "checkpoint", artifact)
    if change == "config":
        (artifact / "config.json").write_text((artifact / "config.json").read_text() + " ")
    if change == "weights":
        path = artifact / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    records, digest = digest_tree(artifact)
    source = built.require(fetch.FETCHED).result
    example = release()
    example = example.model_copy(
        update={
            "recipe": built.plan.recipe.model_dump(mode="json"),
            "recipe_text": built.plan.loaded.file.text,
            "source": source.model_copy(update={"digest": "0" * 64}) if change == "source" else source,
            "calibration": None,
            "quantized": entry.result.model_copy(update={"files": records, "digest": digest}),
            "environments": tuple(e.record() for e in built.plan.environments.values()),
            "baseline": example.baseline.model_copy(update={"model_digest": source.digest}),
        }
    )
    folder, notes = laid_out_as(scratch / name, artifact, example)
    LocalRegistry(qpack.home / "registry").push(
        folder, PushRequest(name, None, "latest", actor="test"), annotations=notes
    )


def stopped(qpack: Qpack, name: str) -> None:
    """What a rebuild leaves that was killed after quantizing: here the results of the first build."""
    digest = LocalRegistry(qpack.home / "registry").resolve(name).digest
    room = qpack.home / "reproduce" / digest.removeprefix("sha256:")[:32]
    shutil.copytree(qpack.home / "store", room / "store")


def test_a_release_is_rebuilt_bit_for_bit(made: tuple[Qpack, Build], tmp_path: Path) -> None:
    qpack, built = made
    publish(made, tmp_path, "same")
    done = qpack("reproduce", "same", timeout=400)
    assert done.code == 0, done.err
    assert done.out.startswith("same:1: bit-identical, rebuilt in ")
    # The evidence is made up, and so is the machine that it is from; environments and tokens are this one's.
    assert [line.split()[0] for line in done.out.splitlines() if "DIFFERS" in line] == ["hardware"]
    assert "[3/3] quantize" in done.err
    assert "from the store" not in done.err, "nothing of the first build is reused"
    assert not [path for path in (qpack.home / "reproduce").iterdir() if path.name != "locks"]
    assert built.require(quantize.QUANTIZED).folder.exists()


def test_other_weights_are_told_with_figures(made: tuple[Qpack, Build], tmp_path: Path) -> None:
    qpack, built = made
    publish(made, tmp_path, "other", "weights")
    stopped(qpack, "other")
    done = qpack("reproduce", "other", "--no-evaluate", "--json")
    assert done.code == 8
    assert "from the store" in done.err, "a rebuild that was stopped goes on where it was"
    assert "registry[not-reproduced]" in done.err
    answer = json.loads(done.out)
    assert (answer["outcome"], answer["files"]) == ("different", ["model.safetensors"])
    (difference,) = answer["tensors"]["differences"]
    assert difference["elements"] == 1
    with safe_open(built.require(quantize.QUANTIZED).folder / "checkpoint" / "model.safetensors", "numpy") as file:
        assert answer["tensors"]["tensors"] == len(file.keys())
        assert difference["of"] == int(np.prod(file.get_slice(difference["name"]).get_shape()))


def test_other_files_around_the_same_tensors_are_tensor_identical(made: tuple[Qpack, Build], tmp_path: Path) -> None:
    qpack, _ = made
    publish(made, tmp_path, "config", "config")
    stopped(qpack, "config")
    done = qpack("reproduce", "config")
    assert done.code == 0, done.err
    assert "config:1: tensor-identical" in done.out
    assert "config.json has other bytes" in done.out


def test_a_source_that_has_changed_can_not_be_rebuilt_from(made: tuple[Qpack, Build], tmp_path: Path) -> None:
    qpack, _ = made
    publish(made, tmp_path, "source", "source")
    done = qpack("reproduce", "source")
    assert done.code == 8
    assert "registry[source-changed]" in done.err
