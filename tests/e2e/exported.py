"""A server started from what `qpack export --to vllm` wrote, and the real Prometheus that watches it."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from qpack.runtime import process
from qpack.runtime.environments import Environment
from tests.patience import PATIENCE
from tests.scenarios.command import wait_for


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def reachable(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False


@contextmanager
def from_export(folder: Path, vllm: Environment) -> Iterator[str]:
    """The address of vLLM started from `vllm.yaml` and `vllm.env` in `folder`, which holds the pulled model."""
    port = yaml.safe_load((folder / "vllm.yaml").read_text())["port"]
    variables = dict(line.split("=", 1) for line in (folder / "vllm.env").read_text().splitlines() if "#" not in line)
    command = [vllm.python, "-m", "vllm.entrypoints.openai.api_server", "--config", "vllm.yaml"]
    url = f"http://127.0.0.1:{port}"
    # Not marked as a process of qpack: what cleans up after a command must leave it alone.
    hidden = {"HF_HUB_OFFLINE": "1", **vllm.variables, **variables}
    with process.start(list(map(str, command)), log=folder / "log", environment=hidden, cwd=folder) as server:
        wait_for(lambda: healthy(url) or server.poll() is not None, "the server isn't up", within=600)
        assert server.poll() is None, (folder / "log").read_text()[-3000:]
        yield url


class Watched:
    """A Prometheus that runs."""

    def __init__(self, api: str) -> None:
        self.api = api

    def firing(self) -> list[str]:
        """Alerts that fire."""
        found = httpx.get(f"{self.api}/alerts").json()["data"]["alerts"]
        return [alert["labels"]["alertname"] for alert in found if alert["state"] == "firing"]

    def empty(self, queries: list[str]) -> list[str]:
        """The queries that have no data."""
        answers = {q: httpx.get(f"{self.api}/query", params={"query": q}).json() for q in queries}
        return [query for query, answer in answers.items() if not answer["data"]["result"]]


@contextmanager
def prometheus(folder: Path, configuration: dict[str, Any], rules: dict[str, Any]) -> Iterator[Watched]:
    """The real Prometheus, scraping every second."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not here (Debian package prometheus)")
    port = free_port()
    api = f"http://127.0.0.1:{port}/api/v1"
    often = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (folder / "prometheus.yml").write_text(yaml.safe_dump({**configuration, "global": often}))
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    command = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    watching = subprocess.Popen(
        [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: reachable(f"{api}/alerts"), "no Prometheus")
        yield Watched(api)
    finally:
        watching.terminate()
        watching.wait(PATIENCE)
