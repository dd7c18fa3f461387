"""One OCI registry for all tests, in which each has repositories of its own; and a tiny model of every architecture."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qpack.runtime.environments import Environment
from tests.contract import mlflow_server
from tests.contract.oci_server import Server, serving
from tests.e2e.conftest import smollm2
from tests.scenarios.conftest import kept

__all__ = ["smollm2"]

TINY_MODELS = Path(__file__).parent / "tiny_models.py"


@pytest.fixture(scope="session")
def oci_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("oci")) as server:
        yield server


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory, engine_home: Path) -> Iterator[str]:
    with mlflow_server.serving(tmp_path_factory.mktemp("mlflow"), engine_home) as host:
        yield host


@pytest.fixture
def empty_mlflow(mlflow: str) -> str:
    """The host of the server, without models."""
    mlflow_server.empty(mlflow)
    return mlflow


@pytest.fixture(scope="session")
def architectures(engine_home: Path, smollm2: Path) -> list[Path]:
    """A tiny checkpoint with random weights of every architecture of `tiny_models.py`, made once and kept."""

    def make(environment: Environment, gguf: Path, part: Path) -> None:
        variables = {**os.environ, **environment.variables}
        command = [environment.python, TINY_MODELS, part, "--tokenizer", smollm2]
        subprocess.run(command, env=variables, check=True, capture_output=True, timeout=900)

    folder = kept(engine_home, "architectures", TINY_MODELS, make)
    made = json.loads((folder / "made.json").read_text())
    return [folder / name for name in sorted(made) if made[name]["ok"]]
