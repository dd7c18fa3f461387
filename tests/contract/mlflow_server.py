"""A real MLflow tracking server on this machine, in an environment of its own (`envs/mlflow`)."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from qpack.runtime import environments
from qpack.runtime.specs import Spec
from tests.e2e.exported import free_port
from tests.patience import PATIENCE

MLFLOW = Spec("mlflow", Path(__file__).parent / "envs" / "mlflow", ("mlflow",))


@contextmanager
def serving(folder: Path, engine_home: Path) -> Iterator[str]:
    """`127.0.0.1:port` of a server with its files in `folder`."""
    environment = environments.ensure(environments.resolve(MLFLOW, "cpu", engine_home), engine_home, print)
    folder.mkdir(parents=True, exist_ok=True)
    host, log = f"127.0.0.1:{free_port()}", folder / "server.log"
    command = [
        *(environment.python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", host.partition(":")[2]),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", folder / "artifacts"),
        *("--serve-artifacts", "--workers", "1"),
    ]
    with log.open("w") as output:
        variables = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "MLFLOW_DISABLE_TELEMETRY": "true"}
        running = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output, cwd=folder, env=variables)
    try:
        ends = time.monotonic() + PATIENCE
        while not _healthy(host):
            assert running.poll() is None, log.read_text()
            assert time.monotonic() < ends, log.read_text()
            time.sleep(0.2)
        yield host
    finally:
        running.terminate()
        try:
            running.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def _healthy(host: str) -> bool:
    try:
        return httpx.get(f"http://{host}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def empty(host: str) -> None:
    """Remove every registered model. Runs stay."""
    api = f"http://{host}/api/2.0/mlflow/registered-models"
    found = httpx.get(f"{api}/search", params={"max_results": "200"}, timeout=PATIENCE).json()
    for model in found.get("registered_models", []):
        httpx.request("DELETE", f"{api}/delete", json={"name": model["name"]}, timeout=PATIENCE).raise_for_status()
