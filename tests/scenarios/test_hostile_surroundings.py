"""Where and how qpack is started: a folder of hostile modules, streams that can't be written, a machine that lacks
something. Never a bug (70), never a traceback, and nothing of the folder runs.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qpack.pipeline.plan import SPECS
from qpack.runtime import environments
from tests.patience import PATIENCE
from tests.scenarios.command import Qpack, wait_for
from tests.scenarios.test_machine import HUB_MODEL, connected, hub

PROGRAM = Path(sys.executable).parent / "qpack"
HOSTILE = (
    *("torch", "json", "yaml", "typing", "sitecustomize", "usercustomize", "qpack", "vllm", "ray", "os", "re"),
    *("importlib", "platform", "pip", "evals", "quantize", "registry", "typer", "model_signing", "rich", "matplotlib"),
)


def shell(qpack: Qpack, line: str, timeout: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command line with redirections, as a person types it; `qpack` is the installed program."""
    path = f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"
    given = qpack.environment(**{"PATH": path, **variables})
    given = {name: value for name, value in given.items() if value != "UNSET"}
    done = subprocess.run(
        ["bash", "-c", line], env=given, cwd=qpack.cwd, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert "Traceback" not in done.stderr + done.stdout, done
    assert "Exception ignored" not in done.stderr, done
    assert done.returncode != 70, done
    return done


@pytest.fixture
def hostile(qpack: Qpack) -> Path:
    """The current folder, full of modules that leave a mark when they are imported, and of configuration."""
    mark = qpack.cwd / "imported"
    for name in HOSTILE:
        (qpack.cwd / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name + ' '!r})\n")
    (qpack.cwd / "uv.toml").write_text("this is no configuration\n")
    (qpack.cwd / "pyproject.toml").write_text("[tool.uv]\nindex-url = 'http://127.0.0.1:9'\n")
    return mark


def test_nothing_of_the_current_folder_is_imported(qpack: Qpack, hostile: Path, served: Path) -> None:
    spec = SPECS["ray"]
    folder = environments.resolve(spec, "cpu", qpack.home).folder
    venv.create(folder, with_pip=False, symlinks=True)
    (folder / "qpack.json").write_text("{}")
    own = {"QPACK_ENV_VLLM": sys.executable, "QPACK_ENV_TRANSFORMERS": sys.executable}
    for line, code in {
        f"qpack plan {served}": 0,
        f"qpack plan {served} --json": 0,
        f"qpack check {served}": 0,
        "qpack envs check ray": 3,
        "qpack envs list": 0,
        "qpack doctor": 0,
        "qpack list": 0,
        "qpack schema": 0,
        "qpack verify nothing": 8,
        "qpack export nothing --to compose": 8,
    }.items():
        assert shell(qpack, line, **own).returncode == code, line
        assert not hostile.exists(), f"{line}: {hostile.read_text()}"


def test_nothing_of_the_current_folder_is_read_when_an_environment_is_made(qpack: Qpack, hostile: Path) -> None:
    nowhere = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0", "ALL_PROXY": ""}
    done = shell(qpack, "qpack envs build ray", **nowhere, UV_CACHE_DIR=str(qpack.cwd / "cache"))
    assert done.returncode == 3
    assert "uv.toml" not in done.stderr
    assert "pyproject.toml" not in done.stderr
    assert "127.0.0.1:9/simple" in done.stderr
    assert not hostile.exists()
    assert not qpack.half_done()


@pytest.mark.engines
def test_a_real_environment_is_checked_without_the_current_folder(real: Qpack, hostile: Path) -> None:
    assert shell(real, "qpack envs check transformers", timeout=600).returncode == 0
    assert not hostile.exists()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("qpack list > /dev/full", 3),
        ("qpack --help > /dev/full", 3),
        ("qpack --version > /dev/full", 3),
        ("qpack doctor --json > /dev/full", 3),
        ("qpack envs list > /dev/full 2> /dev/full", 3),
        ("qpack verify nothing 2> /dev/full", 8),
        ("qpack nonsense 2> /dev/full", 3),
        ("qpack list >&-", 0),
        ("qpack list 2>&-", 0),
        ("qpack list <&-", 0),
        ("qpack verify nothing >&- 2>&- <&-", 8),
        ("qpack schema | head -1; exit ${PIPESTATUS[0]}", 0),
        ("qpack --help | true; exit ${PIPESTATUS[0]}", 0),
        ("qpack alias a 1 --why $'\\xff'", 2),
        ("qpack check $'caf\\xe9.yaml'", 2),
        ("qpack check $'a\\nb.yaml'", 2),
        ("mkdir gone && cd gone && rmdir ../gone && qpack list", 3),
        ("mkdir gone && cd gone && rmdir ../gone && qpack --help", 0),
        ("ulimit -n 8; qpack list", 0),
    ],
)
def test_a_stream_an_argument_or_a_folder_that_is_not_there_is_no_bug(qpack: Qpack, line: str, code: int) -> None:
    done = shell(qpack, line)
    assert done.returncode == code, done
    if code in (2, 3, 8) and "2>" not in line:
        assert done.stderr.strip()


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({"HOME": "UNSET", "TERM": "UNSET"}, 0),
        ({"HOME": "/nonexistent", "QPACK_HOME": "UNSET"}, 0),
        ({"TMPDIR": "/nonexistent"}, 0),
        ({"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, 0),
        ({"QPACK_HOME": "/proc/nothing"}, 0),
        ({"QPACK_REGISTRY": "/dev/null"}, None),
        ({"QPACK_HOME": "/tmp/\udcff"}, 3),
    ],
)
def test_a_variable_that_names_nothing_is_no_bug(
    qpack: Qpack, served: Path, variables: dict[str, str], code: int | None
) -> None:
    done = shell(qpack, f"qpack plan {served}", **variables)
    assert code is None or done.returncode == code, done
    assert shell(qpack, "qpack doctor --json", **variables).returncode in (0, 3)
    assert shell(qpack, "qpack list", **variables).returncode in (0, 3, 8)


def test_a_build_whose_home_can_not_be_written_is_an_environment_error(qpack: Qpack, served: Path) -> None:
    for home in ("/proc/nothing", "/dev/null/x"):
        done = shell(qpack, f"qpack build {served}", QPACK_HOME=home)
        assert done.returncode == 3, done


@pytest.fixture(scope="module")
def no_locks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library whose flock(2) answers as a file system without locks does."""
    folder = tmp_path_factory.mktemp("no-locks")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "flock.c").write_text("#include <errno.h>\nint flock(int f, int o) { errno = ENOLCK; return -1; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "flock.so", folder / "flock.c"], check=True)
    return folder / "flock.so"


def test_a_file_system_without_locks_is_an_environment_error(qpack: Qpack, served: Path, no_locks: Path) -> None:
    done = shell(qpack, f"qpack build {served}", LD_PRELOAD=str(no_locks))
    assert done.returncode == 3, done
    assert "environment[no-locks]" in done.stderr
    assert not qpack.finished()
    assert not qpack.half_done()
    assert shell(qpack, "qpack list", LD_PRELOAD=str(no_locks)).returncode in (0, 3, 8)
    assert shell(qpack, "qpack gc", LD_PRELOAD=str(no_locks)).returncode in (0, 3, 8)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_closed_terminal_is_an_interruption(qpack: Qpack, number: signal.Signals) -> None:
    with hub(hangs=True) as address, qpack.started("build", HUB_MODEL, HF_ENDPOINT=address) as running:
        port = int(address.rpartition(":")[2])
        wait_for(lambda: port in connected(running.pid), "it never asked the hub")
        running.send_signal(number)
        _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130
    assert err.startswith("qpack: interrupted: ")
    assert not qpack.half_done()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_an_impatient_interruption_ends_as_one_does(qpack: Qpack, number: signal.Signals) -> None:
    with hub(hangs=True) as address, qpack.started("build", HUB_MODEL, HF_ENDPOINT=address) as running:
        port = int(address.rpartition(":")[2])
        wait_for(lambda: port in connected(running.pid), "it never asked the hub")
        running.send_signal(number)
        assert running.stderr is not None
        assert running.stderr.readline().startswith("qpack: interrupted: ")
        while running.poll() is None:  # from the message to the end of the interpreter
            running.send_signal(number)
            time.sleep(0.001)
        _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130
    assert "Traceback" not in err


def test_an_interruption_while_it_starts_ends_it_without_a_traceback(qpack: Qpack) -> None:
    line = "sys.addaudithook(lambda event, about: about[:1] == ('typer',) and os.kill(os.getpid(), signal.SIGINT))"
    planted = f"import os, signal, sys; from qpack.cli import start; {line}; start.main()"
    done = subprocess.run(
        [sys.executable, "-c", planted, "list"], env=qpack.environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_under_nohup_a_closed_terminal_stops_nothing(qpack: Qpack) -> None:
    with hub(hangs=True) as address:
        line = f"trap '' HUP; exec {PROGRAM} build {HUB_MODEL}"
        started = subprocess.Popen(
            ["bash", "-c", line], env=qpack.environment(HF_ENDPOINT=address), cwd=qpack.cwd,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        port = int(address.rpartition(":")[2])
        wait_for(lambda: port in connected(started.pid), "it never asked the hub")
        started.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            started.wait(1)
        started.send_signal(signal.SIGTERM)
        started.communicate(timeout=PATIENCE)
    assert started.returncode == 130


@pytest.mark.engines
def test_a_closed_terminal_leaves_no_draft_and_no_process(real: Qpack) -> None:
    with real.started("build", "recipe.yaml") as running:
        real.worker("tokens_worker.py") if real.processes("tokens_worker.py") else wait_for(
            lambda: list((real.home / "store" / "drafts").glob("*")), "it never began"
        )
        running.send_signal(signal.SIGHUP)
        running.communicate(timeout=PATIENCE)
    assert running.returncode == 130
    assert real.ended()
    assert not real.half_done()


@pytest.fixture
def screen() -> Iterator[tuple[int, list[bytes]]]:
    """A terminal: what is written to it is read, until it is closed."""
    ours, theirs = pty.openpty()
    seen: list[bytes] = []

    def read() -> None:
        while True:
            try:
                seen.append(os.read(ours, 65536))
            except OSError:
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    yield theirs, seen
    os.close(theirs)
    reader.join(PATIENCE)
    os.close(ours)


@pytest.mark.parametrize("github", ["", "true"])
def test_what_a_stranger_wrote_does_nothing_to_a_terminal(
    qpack: Qpack, recipe: Path, screen: tuple[int, list[bytes]], github: str
) -> None:
    hostile = "x\u202e\x1b]0;title\x07\n::error::told\u200b"
    file = qpack.cwd / "hostile.yaml"
    file.write_text(
        f"name: {json.dumps(hostile)}\n{json.dumps(hostile)}: 1\nmodel: {{source: {json.dumps(hostile)}}}\n"
    )
    environment = qpack.environment(GITHUB_ACTIONS=github, TERM="xterm")
    done = subprocess.run(
        [PROGRAM, "check", "hostile.yaml"],
        env=environment,
        cwd=qpack.cwd,
        stderr=screen[0],
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2
    wait_for(lambda: b"qpack: recipe" in b"".join(screen[1]), "it said nothing")
    text = b"".join(screen[1]).decode()
    for character in ("\u202e", "\x1b", "\x07", "\u200b"):
        assert character not in text
    if github:
        wrong = [line for line in text.splitlines() if line.strip().startswith("::")]
        assert wrong, "annotations are written"
        assert [line for line in wrong if not line.startswith("::error file=hostile.yaml,line=")] == []


def test_a_home_without_room_for_a_bug_report_is_no_traceback(qpack: Qpack, served: Path) -> None:
    nowhere = replace(qpack, variables={"TMPDIR": "/nonexistent"})
    assert shell(nowhere, "cd / && qpack list").returncode == 0
