"""Two nodes of a real Ray cluster, and one of them killed: what that costs, and how the same jobs resume."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from evals.server.eval_environments import RAY
from evals.workers.ray_jobs_job import Answer, Command, Job, Resources
from qpack.core.errors import EnvironmentFailed
from qpack.pipeline.ray_sweep import WORKER, why_not
from qpack.runtime import environments, worker
from qpack.runtime.environments import Environment
from tests.scenarios.command import wait_for

pytestmark = [pytest.mark.engines, pytest.mark.slow("two nodes of a real Ray, and one of them killed")]

# A job of two stages that keeps the first one's result, as a build does, and waits in the second until it may end.
STAGES = """
import pathlib, sys, time
kept, may_end = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
if not kept.exists():
    with kept.with_suffix(".made").open("a") as made:
        made.write("made\\n")
    kept.write_text("first stage")
deadline = time.monotonic() + 240
while not may_end.exists() and time.monotonic() < deadline:
    time.sleep(0.1)
print("built")
"""


@dataclass(frozen=True)
class Cluster:
    """Its address, and its nodes by name."""

    address: str
    nodes: dict[str, subprocess.Popen[bytes]]


@contextlib.contextmanager
def cluster(ray: Environment, logs: Path) -> Iterator[Cluster]:
    """A head and a second node on this machine, each with room for one job."""
    port = free_port()
    # Ray's sockets have long names: the folder's is short.
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    program = [str(ray.python), "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str, *more: str) -> None:
        with (logs / f"{name}.log").open("wb") as log:
            nodes[name] = subprocess.Popen([*program, *more], env=environment, stdout=log, stderr=log)

    address = f"127.0.0.1:{port}"
    try:
        start("head", "--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false",
              f"--temp-dir={folder}")  # fmt: skip
        # Nodes can join once the head's own node is known.
        wait_for(lambda: "Ray runtime started" in (logs / "head.log").read_text(), "Ray's head isn't up", within=240)
        start("second", f"--address={address}", "--node-ip-address=127.0.0.1")
        wait_for(lambda: len(raylets(nodes)) == 2, "the second node isn't up", within=240)
        yield Cluster(address, nodes)
    finally:
        for node in nodes.values():
            end(node)
        shutil.rmtree(folder, ignore_errors=True)


def raylets(nodes: dict[str, subprocess.Popen[bytes]]) -> list[psutil.Process]:
    """The raylet of each node that has one."""
    found = []
    for node in nodes.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [p for p in psutil.Process(node.pid).children(recursive=True) if p.name() == "raylet"]
    return found


def end(node: subprocess.Popen[bytes]) -> None:
    """Kill a node and everything below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        every = [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]
        for process in every:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    node.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def job(folder: Path, address: str) -> Job:
    commands = tuple(
        Command(
            name=f"job {number}",
            line=(sys.executable, "-c", STAGES, str(folder / f"kept-{number}"), str(folder / "may-end")),
            folder=str(folder),
            variables={},
        )
        for number in range(3)
    )
    return Job(address, 1, Resources(num_cpus=1, num_gpus=0), commands)


def call(ray: Environment, folder: Path) -> worker.Call:
    (folder / "out").mkdir(exist_ok=True)
    return worker.Call(ray, folder / "out", folder / "ray.log", 400, EnvironmentFailed)


def running(folder: Path, below: psutil.Process) -> list[psutil.Process]:
    """The jobs that run below a raylet."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [p for p in below.children(recursive=True) if str(folder / "may-end") in p.cmdline()]
    return []


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray asks for by default. The nodes and qpack get it as they get all of Ray's variables."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a1" * 32)


@pytest.mark.usefixtures("token")
def test_a_killed_node_costs_its_own_job_alone_and_the_same_jobs_resume(
    engine_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = environments.ensure(environments.resolve(RAY, "cpu", engine_home), engine_home, print)
    answers: list[Answer] = []
    with cluster(ray, tmp_path) as made:
        asked = job(tmp_path, made.address)
        with monkeypatch.context() as without:
            without.delenv("RAY_AUTH_MODE")
            without.delenv("RAY_AUTH_TOKEN")
            with pytest.raises(EnvironmentFailed) as refused:
                worker.run(WORKER, asked, Answer, call(ray, tmp_path))
        assert "RAY_AUTH_TOKEN" in refused.value.hint
        thread = threading.Thread(target=lambda: answers.append(worker.run(WORKER, asked, Answer, call(ray, tmp_path))))
        thread.start()
        first, second = raylets(made.nodes)
        wait_for(
            lambda: all(running(tmp_path, raylet) for raylet in (first, second)), "no job on each node", within=120
        )
        (lost,) = running(tmp_path, second)
        wait_for(lambda: len(list(tmp_path.glob("kept-?"))) == 2, "a first stage isn't done", within=120)
        made.nodes["second"].send_signal(signal.SIGKILL)
        for process in [*second.children(recursive=True), second]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process != lost:
                    process.kill()
        # Its process ends with its Ray worker, and isn't left behind.
        wait_for(lambda: not lost.is_running() or lost.status() == psutil.STATUS_ZOMBIE, "the job goes on", within=60)
        (tmp_path / "may-end").touch()
        thread.join(300)
        (answer,) = answers
        codes = [one.code for one in answer.jobs]
        assert sorted(codes, key=str) == [0, 0, None], answer
        (gone,) = (one for one in answer.jobs if one.code is None)
        error = why_not(gone)
        assert error.exit_code == 5
        assert "Ray may have lost its node" in error.hint
        # The same jobs again, on what is left of the cluster.
        again = worker.run(WORKER, asked, Answer, call(ray, tmp_path))
    assert [one.code for one in again.jobs] == [0, 0, 0]
    assert [path.read_text() for path in sorted(tmp_path.glob("kept-?.made"))] == ["made\n"] * 3, "a stage ran twice"
