"""What the processes that qpack starts really get and really import: real children, planted secrets, hostile files."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from evals.server import vllm_server
from qpack.core.errors import EvaluateError, QuantizeError
from qpack.pipeline.plan import SPECS
from qpack.runtime import environments, process, worker
from qpack.runtime.environments import Environment
from qpack.runtime.variables import COMPUTE, INSTALL, SERVE, Group
from tests.contract import beside
from tests.patience import PATIENCE

PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted",
    "GITHUB_TOKEN": "planted",
    "HF_TOKEN": "planted",
    "VLLM_API_KEY": "planted",
    "QPACK_OCI_PASSWORD": "planted",
    "QPACK_KEY_PASSWORD": "planted",
    "SIGSTORE_ID_TOKEN": "planted",
    "UV_INDEX_PRIVATE_PASSWORD": "planted",
    "OPENAI_API_KEY": "planted",
    "HTTPS_PROXY": "http://user:planted@proxy",
    "SOME_NEW_SERVICE_TOKEN": "planted",
    "PYTHONSTARTUP": "planted",
    "PYTHONUSERBASE": "planted",
    "OMP_NUM_THREADS": "2",
}
HOSTILE = ("torch", "json", "yaml", "typing", "sitecustomize", "usercustomize", "qpack", "vllm", "runpy", "os")


@dataclass(frozen=True)
class Here:
    """An interpreter with nothing installed, as a worker's environment."""

    inherits: tuple[Group, ...] = (COMPUTE,)
    name: str = "here"
    python: Path = Path(sys.executable)
    variables: dict[str, str] = field(default_factory=dict)


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, and PYTHONPATH: full of modules that leave a mark when they are imported."""
    folder, mark = tmp_path / "hostile", tmp_path / "imported"
    folder.mkdir()
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name + ' '!r})\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    return mark


def secrets(got: dict[str, str]) -> set[str]:
    return {name for name, value in got.items() if "planted" in value}


def printed(log: Path) -> dict[str, str]:
    lines = log.read_text().split("\0")
    return {name: value for name, equals, value in (line.partition("=") for line in lines) if equals}


@pytest.mark.parametrize("name", sorted(SPECS))
def test_an_environment_s_process_gets_the_secrets_that_it_needs(name: str, hostile: Path, tmp_path: Path) -> None:
    spec = SPECS[name]
    made = Environment(name, "cpu", "", Path(sys.executable), spec)
    expected = {
        "canary": {"VLLM_API_KEY", "HTTPS_PROXY"},
        "model-signing": {"QPACK_KEY_PASSWORD", "SIGSTORE_ID_TOKEN", "HTTPS_PROXY"},
        "ray": {"HF_TOKEN", "HTTPS_PROXY"},
    }.get(name, set())
    kinds = (
        (made, expected),
        (made.online(), expected | {"HF_TOKEN", "HTTPS_PROXY"}),
        (made.online(token=False), expected | {"HTTPS_PROXY"}),
    )
    for environment, secret in kinds:
        log = tmp_path / f"log-{len(secret)}"
        log.unlink(missing_ok=True)
        with process.start(
            ["env", "-0"], log=log, environment=environment.variables, inherit=environment.inherits
        ) as running:
            assert running.wait(PATIENCE) == 0
        assert secrets(printed(log)) == secret
        assert printed(log)["OMP_NUM_THREADS"] == "2"
        assert printed(log)["PYTHONSAFEPATH"] == "1"


def test_the_installer_gets_the_login_of_its_index_and_no_other(hostile: Path, tmp_path: Path) -> None:
    with process.start(["env", "-0"], log=tmp_path / "log", inherit=[INSTALL]) as running:
        running.wait(PATIENCE)
    assert secrets(printed(tmp_path / "log")) == {"UV_INDEX_PRIVATE_PASSWORD", "HTTPS_PROXY"}
    assert secrets(dict(os.environ)) == set(PLANTED) - {"OMP_NUM_THREADS"}


def test_a_short_question_gets_no_secret(hostile: Path) -> None:
    assert "planted" not in process.ask(["env"], timeout=PATIENCE)


WORKER = """
import os, sys, multiprocessing, subprocess
import json, typing, qpack_worker, beside
def work(job, out):
    child = "import json, typing, os, sys; print(sys.flags.safe_path, sys.flags.no_user_site)"
    return beside.Seen(
        variables=dict(os.environ), path=tuple(sys.path), isolated=sys.flags.isolated,
        child=tuple(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout.split()),
        spawned=tuple(multiprocessing.get_context("spawn").Pool(1).map(beside.own, [1])),
    )
if __name__ == "__main__":
    qpack_worker.main(work, beside.Job)
"""


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_worker_finds_its_own_modules_and_nothing_of_the_current_folder(
    hostile: Path, tmp_path: Path, as_folder: bool
) -> None:
    folder = tmp_path / "workers"
    folder.mkdir()
    script = folder / ("__main__.py" if as_folder else "a_worker.py")
    script.write_text(WORKER)
    shutil.copyfile(Path(__file__).with_name("beside.py"), folder / "beside.py")
    call = worker.Call(Here(), tmp_path / "out", tmp_path / "log", 60, QuantizeError)
    result = worker.run(folder if as_folder else script, beside.Job(1), beside.Seen, call)
    assert not hostile.exists(), hostile.read_text()
    assert secrets(result.variables) == set()
    assert result.isolated == 1
    assert result.spawned == (1,)
    assert result.child == ("True", "1")
    assert result.path[0] == str(folder)
    assert str(Path.cwd()) not in result.path


@pytest.mark.parametrize("inherits", [(COMPUTE,), (COMPUTE, SERVE)])
def test_a_measured_server_gets_no_secret_and_a_served_one_its_key(
    inherits: tuple[Group, ...], hostile: Path, tmp_path: Path
) -> None:
    """The interpreter writes what it was given and ends; that is all that is looked at here."""
    python, told = tmp_path / "python", tmp_path / "told"
    python.write_text(f'#!/bin/sh\nenv -0 > {told}\necho "$@" > {told}.line\nexit 1\n')
    python.chmod(0o755)
    command = vllm_server.Command(python, lambda _, port: ["--port", str(port)], {"NO_COLOR": "1"}, inherits)
    with (
        pytest.raises(EvaluateError),
        vllm_server.running(command, model="m", log=tmp_path / "log", timeout=PATIENCE, progress=lambda *_: None),
    ):
        raise AssertionError("it can't be up")
    assert secrets(printed(told)) == ({"VLLM_API_KEY"} if SERVE in inherits else set())
    assert printed(told)["NO_COLOR"] == "1"
    assert Path(f"{told}.line").read_text().startswith("-I -m vllm.")


def test_variables_of_python_that_a_recipe_sets_are_read_and_the_current_folder_still_is_not(
    hostile: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "plugin.py").write_text("")
    variables = {"PYTHONPATH": str(own)}
    line = [*process.isolated(sys.executable, variables), "-c", "import json, typing, plugin"]
    with process.start(line, log=tmp_path / "log", environment=variables, cwd=Path.cwd()) as running:
        assert running.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    assert not hostile.exists()


def test_checking_an_environment_imports_nothing_of_the_current_folder(hostile: Path, tmp_path: Path) -> None:
    spec = environments.Spec("x", tmp_path, ("json", "typing", "os"))
    environments.check(Environment("x", "cpu", "", Path(sys.executable), spec), tmp_path / "logs" / "log")
    assert not hostile.exists()
