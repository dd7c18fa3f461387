"""What the machine may lack: uv, a network, the hub, room on the disk. Nothing half done is left."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from qpack.runtime import environments, platforms
from tests.patience import PATIENCE
from tests.scenarios.command import DEMO, ROOT, Qpack, wait_for

HUB_MODEL = ROOT / "recipes" / "llama3-8b-fp8.yaml"
# Port 9 is "discard": nobody listens there. uv and the hub's client both heed the proxies.
NOWHERE = "http://127.0.0.1:9"
NO_NETWORK = {
    "UV_DEFAULT_INDEX": f"{NOWHERE}/simple",
    "UV_HTTP_RETRIES": "0",
    "HTTP_PROXY": NOWHERE,
    "HTTPS_PROXY": NOWHERE,
    "ALL_PROXY": NOWHERE,
    "HF_ENDPOINT": NOWHERE,
}


@pytest.fixture
def without_uv(qpack: Qpack) -> Qpack:
    """qpack in a virtual environment with links to its packages, without the program uv, and nothing on the PATH."""
    folder = qpack.cwd / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    for package in Path(ours).iterdir():
        (packages / package.name).symlink_to(package)
    (packages / "qpack-test.pth").write_text(f"{ROOT}\n")
    return replace(qpack, python=folder / "bin" / "python", variables={"PATH": str(qpack.cwd / "empty")})


def test_an_environment_that_needs_a_python_that_is_not_here_says_which(qpack: Qpack) -> None:
    """Only the Python that runs qpack can be found: exit 3, and nothing half made."""
    if platforms.running() == "3.12":
        pytest.skip("Python 3.12 runs qpack")
    hidden = {"UV_PYTHON_PREFERENCE": "only-managed", "UV_PYTHON_INSTALL_DIR": str(qpack.cwd / "none"),
              "UV_PYTHON_DOWNLOADS": "never"}  # fmt: skip
    done = replace(qpack, variables={**qpack.variables, **hidden})("envs", "build", "inference-perf")
    assert done.code == 3
    assert "Python 3.12" in done.err
    assert "environments: {NAME: PYTHON}" in done.err
    assert not list((qpack.home / "envs").glob("inference-perf-*"))


def test_without_uv_a_build_says_how_to_get_it(without_uv: Qpack) -> None:
    done = without_uv("build", DEMO.with_name("smollm2-135m-w8a8.yaml"))
    assert done.code == 3
    assert "environment[no-uv]" in done.err
    assert "Run `pip install uv`" in done.err
    assert not without_uv.half_done()
    assert not without_uv.finished()


def test_without_uv_the_doctor_says_so_and_the_rest_of_it(without_uv: Qpack) -> None:
    done = without_uv("doctor", "--json")
    assert done.code == 3
    found = {finding["what"]: finding for finding in json.loads(done.out)}
    assert found["uv"]["severity"] == "error"
    assert found["memory"]["value"]


@pytest.mark.parametrize("download", ["never", "automatic"])
def test_environments_are_made_with_the_python_that_runs_qpack_and_need_no_other(qpack: Qpack, download: str) -> None:
    hidden = {"UV_PYTHON_PREFERENCE": "only-managed", "UV_PYTHON_INSTALL_DIR": str(qpack.cwd / "none"),
              "UV_PYTHON_DOWNLOADS": download, "UV_CACHE_DIR": str(qpack.cwd / "cache")}  # fmt: skip
    qpack = replace(qpack, variables={**NO_NETWORK, **hidden})
    done = qpack("envs", "build", "canary")
    assert done.code == 3
    assert "Check the network" in done.err, "uv got as far as the packages"
    assert "uv python install" not in done.err
    assert not qpack.half_done()
    if platforms.running() == environments.PYTHON:
        (found,) = [one for one in json.loads(qpack("doctor", "--json").out) if one["what"] == "Python of environments"]
        assert found["severity"] == "ok"
        assert "inference-perf would need 3.12" in found["value"]


def test_without_a_compiler_the_doctor_warns(qpack: Qpack) -> None:
    (qpack.cwd / "none").mkdir()
    (found,) = [
        one
        for one in json.loads(qpack("doctor", "--json", PATH=str(qpack.cwd / "none")).out)
        if one["what"] == "compilers"
    ]
    assert found["severity"] == "warning"
    assert all(name in found["value"] for name in ("gcc", "g++"))


@pytest.mark.parametrize("command", [("check", DEMO), ("plan", DEMO), ("envs", "list"), ("doctor",)])
def test_a_plain_terminal_gets_plain_ascii(qpack: Qpack, command: tuple[str | Path, ...]) -> None:
    done = qpack(*command, LANG="C", LC_ALL="C", NO_COLOR="1", COLUMNS="80", TERM="dumb", PYTHONUTF8="0")
    assert done.code == 0, done.err
    assert (done.out + done.err).isascii()
    assert "\x1b" not in done.out + done.err


def test_what_another_user_may_not_read_is_made_and_used_under_a_strict_umask(qpack: Qpack) -> None:
    before = os.umask(0o077)
    try:
        assert qpack("plan", DEMO).code == 0
        assert qpack("plan", DEMO).code == 0, "what the first left is read"
    finally:
        os.umask(before)
    left = [qpack.home, *qpack.home.rglob("*")]
    assert left
    assert [path for path in left if path.lstat().st_mode & 0o077 and not path.is_symlink()] == []


def test_a_home_that_cant_be_written_is_named_with_what_to_set(qpack: Qpack) -> None:
    home = qpack.cwd / "user"
    home.write_text("a file where the folder should be")
    variables = {"HOME": str(home), "XDG_CACHE_HOME": "", "XDG_DATA_HOME": "", "QPACK_HOME": ""}
    assert qpack("plan", DEMO, **variables).code == 0, "a plan needs no place to write"
    done = qpack("build", DEMO, **variables)
    assert done.code == 3
    assert "Set QPACK_HOME to a folder that can be written." in done.err


def test_without_a_network_no_half_environment_is_left(qpack: Qpack) -> None:
    qpack = replace(qpack, variables={**NO_NETWORK, "UV_CACHE_DIR": str(qpack.cwd / "cache")})
    done = qpack("envs", "build", "lm-eval")
    assert done.code == 3
    assert "environment[environment-failed]: the environment 'lm-eval'" in done.err
    assert "Check the network" in done.err
    assert "Log: " in done.err
    assert Path(done.err.rpartition("Log: ")[2].strip()).exists()
    assert not qpack.half_done()
    assert qpack.ended()


@pytest.mark.parametrize("command", ["check", "plan"])
def test_without_the_hub_a_recipe_is_fine_and_what_was_not_looked_at_is_named(command: str, qpack: Qpack) -> None:
    done = qpack(command, HUB_MODEL, HF_ENDPOINT=NOWHERE)
    assert done.code == 0, done
    (left,) = [line for line in done.out.splitlines() if "can't be reached" in line]
    assert "not checked: " in left
    for what in ("can't be reached", "hf://meta-llama/Meta-Llama-3-8B-Instruct@main", "layer shapes", "access"):
        assert what in left
    answer = json.loads(qpack(command, HUB_MODEL, "--json", HF_ENDPOINT=NOWHERE).out)
    assert len(answer["unchecked"]) == 2


def test_without_the_hub_a_build_ends_at_once_with_what_to_do(qpack: Qpack) -> None:
    done = qpack("build", HUB_MODEL, HF_ENDPOINT=NOWHERE)
    assert done.code == 3
    assert "environment[not-planned]" in done.err
    assert "HF_ENDPOINT" in done.err.splitlines()[-1]
    assert not qpack.finished()


def test_on_github_every_group_that_is_opened_is_closed_also_by_a_failure(qpack: Qpack) -> None:
    done = qpack("build", HUB_MODEL, HF_ENDPOINT=NOWHERE, GITHUB_ACTIONS="true")
    lines = done.err.splitlines()
    assert lines[0].startswith("::group::[1/9] fetch: hf://")
    assert lines.index("::endgroup::") < next(i for i, line in enumerate(lines) if line.startswith("qpack: "))
    assert done.err.count("::group::") == done.err.count("::endgroup::")


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for one model; the class attributes say how."""

    status = 401
    code = "GatedRepo"
    hangs = False

    def do_GET(self) -> None:
        """Any path is the model."""
        if self.hangs:
            threading.Event().wait()
        self.send_response(self.status)
        self.send_header("X-Error-Code", self.code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815  (the name that http.server asks for)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@contextlib.contextmanager
def hub(**answers: object) -> Iterator[str]:
    """A hub on the loopback; yields its address."""
    handler = type("Answering", (Hub,), answers)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("command", ["build", "check", "plan"])
def test_a_gated_model_without_a_token_says_how_to_get_access(command: str, qpack: Qpack) -> None:
    with hub() as address:
        done = qpack(command, HUB_MODEL, HF_ENDPOINT=address)
    assert done.code == 2
    (problem,) = done.err.splitlines()[:-1]
    assert problem.startswith(f"error[hub-model] {HUB_MODEL}:")
    for words in ("meta-llama/Meta-Llama-3-8B-Instruct", "gated", "Accept its terms", "HF_TOKEN", "hf auth login"):
        assert words in problem


def test_a_model_that_the_hub_does_not_know_is_a_problem_of_the_recipe(qpack: Qpack) -> None:
    with hub(code="RepoNotFound") as address:
        done = qpack("check", HUB_MODEL, HF_ENDPOINT=address)
    assert done.code == 2
    assert "error[hub-model]" in done.err


def test_a_hub_with_an_error_of_its_own_counts_as_not_reached(qpack: Qpack) -> None:
    with hub(status=503, code="") as address:
        done = qpack("check", HUB_MODEL, HF_ENDPOINT=address)
    assert done.code == 0, done
    assert "not checked: " in done.out


def test_ctrl_c_while_the_hub_does_not_answer_is_an_interruption_and_no_problem_of_the_hub(qpack: Qpack) -> None:
    with hub(hangs=True) as address, qpack.started("build", HUB_MODEL, HF_ENDPOINT=address) as running:
        port = int(address.rpartition(":")[2])
        wait_for(lambda: port in connected(running.pid), "it never asked the hub")
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130
    assert err.startswith("qpack: interrupted: ")


def connected(pid: int) -> list[int]:
    """The ports that a process has a connection to."""
    return [connection.raddr.port for connection in psutil.Process(pid).net_connections("tcp") if connection.raddr]


@pytest.fixture
def small_disk(qpack: Qpack) -> Iterator[Path]:
    """A real file system of 4 MB."""
    folder = qpack.cwd / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system can't be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(disk).free == 0
    return filler


def test_on_a_full_disk_plans_work_and_builds_say_what_to_do(qpack: Qpack, served: Path, small_disk: Path) -> None:
    full = replace(qpack, home=small_disk / "home")
    filler = fill(small_disk)
    assert full("check", served).code == 0
    assert full("plan", served).code == 0
    done = full("build", served)
    assert done.code == 3
    assert "environment[disk-full]" in done.err
    assert "Free some space, or set QPACK_HOME to a larger disk" in done.err
    assert full("doctor").code == 3
    filler.unlink()
    assert not full.half_done()
    assert not list(small_disk.rglob("*.part"))


@pytest.mark.engines
def test_a_disk_that_fills_up_in_an_engine_loses_nothing_that_was_finished(real: Qpack, small_disk: Path) -> None:
    full = replace(real, home=small_disk / "home")
    full.home.mkdir()
    (full.home / "envs").symlink_to((real.home / "envs").resolve())
    done = full("build", "recipe.yaml")
    assert done.code == 3, done.err
    assert "environment[disk-full]" in done.err
    assert "run the same command again" in done.err
    assert Path(done.err.rpartition("Log: ")[2].strip()).read_text()
    assert full.finished() == ["fetch", "hold_out"]
    assert not full.half_done()
    assert shutil.disk_usage(small_disk).free > 3 * 2**20  # what the engine had written is gone


def test_a_home_that_can_not_be_a_folder_is_an_environment_error(qpack: Qpack, served: Path) -> None:
    (qpack.cwd / "file").write_text("")
    impossible = replace(qpack, home=qpack.cwd / "file" / "home")
    assert impossible("plan", served).code == 0
    done = impossible("build", served)
    assert done.code == 3
    assert "Set QPACK_HOME to a folder that can be written." in done.err


def test_what_only_looks_loads_nothing_that_asks_a_server_or_computes() -> None:
    """A plan and a build with nothing to do: most of their time is imports."""
    modules = (
        "qpack.cli.render.plan, qpack.pipeline.plan, qpack.pipeline.run, qpack.pipeline.why, qpack.cli.commands.build"
    )
    code = f"import sys, {modules}; print(*({{'httpx', 'numpy', 'scipy', 'rich.console'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
