"""Nothing outlives qpack: the supervisor and the worker protocol against real processes and real kills."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from qpack.core.errors import EnvironmentFailed, QuantizeError
from qpack.runtime import process, worker
from qpack.runtime.variables import COMPUTE, Group
from qpack.runtime.workerlib.qpack_protocol import Mismatch
from tests.codes import coded
from tests.contract import beside
from tests.patience import PATIENCE


@dataclass(frozen=True)
class Here:
    name: str = "here"
    python: Path = Path(sys.executable)
    variables: dict[str, str] = field(default_factory=dict)
    inherits: tuple[Group, ...] = (COMPUTE,)


def marked(mark: str) -> list[psutil.Process]:
    """Living processes that carry this environment variable: also those that left session, group and parent."""
    found = []
    for candidate in psutil.process_iter():
        try:
            if candidate.environ().get("QPACK_TEST_MARK") == mark and candidate.status() != psutil.STATUS_ZOMBIE:
                found.append(candidate)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def gone(mark: str, within: float = PATIENCE) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not marked(mark):
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path)
    for left in marked(str(tmp_path)):
        left.kill()


# A parent, a child in its own session that ignores SIGTERM, and a grandchild whose parent has ended.
STUBBORN = """
import os, signal, subprocess, sys, time
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True)
orphan = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', %r], start_new_session=True)"
orphan %= "import time; time.sleep(600)"
subprocess.Popen([sys.executable, "-c", orphan])
time.sleep(600)
"""


def wait_for(mark: str, count: int) -> None:
    """Wait until `count` processes stay: the parent of an orphan is among them only until it has ended."""
    deadline = time.monotonic() + PATIENCE
    found = [0, 0]
    while min(found[-2:]) < count and time.monotonic() < deadline:
        found.append(len(marked(mark)))
        time.sleep(0.1)
    assert min(found[-2:]) >= count


def test_stopping_ends_children_that_ignore_sigterm_and_those_that_left(tmp_path: Path, mark: str) -> None:
    with process.start(
        [sys.executable, "-c", STUBBORN], log=tmp_path / "log", environment={"QPACK_TEST_MARK": mark}, grace=0.5
    ):
        wait_for(mark, 4)
    assert gone(mark)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killing_the_owner_leaves_no_process(tmp_path: Path, mark: str, number: signal.Signals) -> None:
    owner = f"""
import sys, time
from pathlib import Path
from qpack.runtime import process
with process.start([sys.executable, "-c", {STUBBORN!r}], log=Path({str(tmp_path)!r}) / "log", grace=0.5) as running:
    time.sleep(600)
"""
    started = subprocess.Popen([sys.executable, "-c", owner], env={**os.environ, "QPACK_TEST_MARK": mark})
    wait_for(mark, 5)
    started.send_signal(number)
    started.wait(PATIENCE)
    assert gone(mark)


def test_killing_the_supervisor_leaves_no_process(tmp_path: Path, mark: str) -> None:
    with process.start(
        [sys.executable, "-c", STUBBORN], log=tmp_path / "log", environment={"QPACK_TEST_MARK": mark}
    ) as running:
        wait_for(mark, 4)
        os.kill(running.pid, signal.SIGKILL)
    assert gone(mark, within=20)


def test_what_a_command_left_behind_is_ended_when_it_ends(tmp_path: Path, mark: str) -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', %r], start_new_session=True)"
    code %= "import time; time.sleep(600)"
    with process.start(
        [sys.executable, "-c", code], log=tmp_path / "log", environment={"QPACK_TEST_MARK": mark}
    ) as running:
        assert running.wait(PATIENCE) == 0
    assert gone(mark)


def test_the_exit_code_and_the_signal_come_through(tmp_path: Path) -> None:
    for code, expected in (("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -9), ("", 0)):
        with process.start([sys.executable, "-c", code], log=tmp_path / "log") as running:
            assert running.wait(PATIENCE) == expected


def run(
    tmp_path: Path, body: str, timeout: float = 60, python: Path = Path(sys.executable)
) -> tuple[beside.Sum, list[tuple[int, int, str]]]:
    script = tmp_path / "script.py"
    script.write_text("import beside, qpack_worker, sys, os, time\n" + body)
    shutil.copyfile(beside.__file__, tmp_path / "beside.py")
    seen: list[tuple[int, int, str]] = []
    out, log = tmp_path / "out", tmp_path / "log"
    call = worker.Call(Here(python=python), out, log, timeout, QuantizeError, lambda *event: seen.append(event))
    return worker.run(script, beside.Job(1), beside.Sum, call), seen


def test_a_worker_hands_over_progress_and_result(tmp_path: Path) -> None:
    work = "lambda job, out: beside.Sum(job.x + 1)"
    result, seen = run(
        tmp_path, f"qpack_worker.progress(1, 2, 'rows')\nprint('noise')\nqpack_worker.main({work}, beside.Job)"
    )
    assert result == beside.Sum(2)
    assert seen == [(1, 2, "rows")]
    assert "noise" in (tmp_path / "log").read_text()
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b'{"y": 1', "it isn't JSON"),
        (b"[" * 100_000, "it isn't JSON"),
        (b"\xff", "it isn't JSON"),
        (b"[]", "the whole: has to be an object, and is []"),
        (b"{}", "y: missing"),
        (b'{"y": "2"}', "y: has to be a whole number, and is '2'"),
        (b'{"y": true}', "y: has to be a whole number, and is True"),
        (b'{"y": 2, "z": 1}', "z: unknown field"),
        (b'{"y": 2, "path": ["a", null]}', "path[1]: has to be text, and is null"),
    ],
    ids=["cut", "deep", "no text", "a list", "missing", "text", "bool", "unknown", "inside"],
)
def test_an_answer_that_does_not_fit_is_an_error_that_names_the_field(
    tmp_path: Path, written: bytes, said: str
) -> None:
    content = f"{written[:1]!r} * {len(written)}" if len(written) > 1000 else repr(written)
    body = f"open('result.json', 'wb').write({content})"
    with pytest.raises(QuantizeError) as caught:
        run(tmp_path, body)
    assert f"its answer doesn't fit: {said}" in caught.value.what
    assert caught.value.log == tmp_path / "log"
    assert (tmp_path / "out" / "result.json").exists(), "it stays, to look at"


def test_the_answer_of_an_earlier_run_is_not_this_one_s(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.json").write_text('{"y": 2}')
    with pytest.raises(QuantizeError, check=coded("no-result")):
        run(tmp_path, "os._exit(0)")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"not JSON\n", "an event doesn't fit: it isn't JSON"),
        (b'{"event": "progress", "done": 1, "what": "x"}\n', "an event doesn't fit: total: missing"),
        (b'{"event": "other"}\n', "an event doesn't fit: the whole: has to be event 'progress' or event 'error'"),
        (b"x" * 3_000_000, "an event doesn't fit: longer than 1048576 bytes"),
    ],
    ids=["no JSON", "a field is missing", "another event", "no end"],
)
def test_an_event_that_does_not_fit_is_an_error_and_ends_the_worker(tmp_path: Path, line: bytes, said: str) -> None:
    sent = f"{line[:1]!r} * {len(line)}" if len(line) > 1000 else repr(line)
    with pytest.raises(QuantizeError) as caught:
        run(tmp_path, f"os.write(int(os.environ['QPACK_EVENTS_FD']), {sent})\ntime.sleep(600)")
    assert said in caught.value.what


def test_a_message_of_any_length_comes_through_shortened_and_whole_in_the_log(tmp_path: Path) -> None:
    deep = "RuntimeError('🙂' * 5_000_000)"
    work = f"def work(*_):\n    try: raise {deep}\n    except RuntimeError: raise {deep}\n"
    with pytest.raises(QuantizeError) as caught:
        run(tmp_path, work + "qpack_worker.main(work, beside.Job)")
    assert caught.value.what.startswith("RuntimeError: 🙂🙂")
    assert len(caught.value.what) == 10_000
    assert (tmp_path / "log").stat().st_size > 10_000_000


def test_a_job_that_does_not_fit_names_the_field_on_both_sides(tmp_path: Path) -> None:
    call = worker.Call(Here(), tmp_path / "out", tmp_path / "log", 60, QuantizeError)
    with pytest.raises(Mismatch, match=r"^x: has to be a whole number, and is 'one'"):
        worker.run(tmp_path / "script.py", beside.Job("one"), beside.Sum, call)  # type: ignore[arg-type]
    with pytest.raises(QuantizeError, check=coded("worker-failed"), match=": x: "):
        run(tmp_path, "qpack_worker.main(lambda job, out: job, beside.Sum)")
    with pytest.raises(QuantizeError, check=coded("worker-failed"), match=": y: "):
        run(tmp_path, "qpack_worker.main(lambda job, out: beside.Sum('2'), beside.Job)")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("qpack_worker.fail('no such layer', 'take another')", "no such layer"),
        ("os.kill(os.getpid(), 9)", "was killed (SIGKILL)"),
        ("print('why it died'); sys.exit(3)", "why it died"),
        ("qpack_worker.main(lambda job, out: 1 / 0, beside.Job)", "ZeroDivisionError"),
        (
            "qpack_worker.main(lambda *_: (_ for _ in ()).throw(MemoryError()), beside.Job)",
            "ran out of host memory: MemoryError",
        ),
        ("os._exit(0)", "gave no result"),
        ("time.sleep(600)", "was stopped: it did not finish within 3 s"),
    ],
)
def test_a_worker_that_fails_dies_or_hangs_is_an_error_with_its_log(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(QuantizeError) as caught:
        run(tmp_path, body, timeout=3 if "sleep" in body else 60)
    assert said in caught.value.what
    assert caught.value.log == tmp_path / "log"


LIMITED = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))\n"
WRAPPED = """
def work(job, out):
    try:
        bytearray(2**30)
    except MemoryError:
        raise RuntimeError("layer 3 can't be quantized")
qpack_worker.main(work, beside.Job)
"""


@pytest.mark.parametrize(
    "body",
    [
        "qpack_worker.main(lambda *_: bytearray(2**30), beside.Job)",
        WRAPPED,
        "bytearray(2**30)  # before it speaks to qpack",
    ],
)
def test_memory_that_really_runs_out_is_told_however_it_is_wrapped(tmp_path: Path, body: str) -> None:
    with pytest.raises(QuantizeError) as caught:
        run(tmp_path, LIMITED + body)
    assert "script ran out of host memory: " in caught.value.what
    assert "Use a machine with more memory" in caught.value.hint


def test_the_words_of_an_earlier_run_in_the_log_are_not_those_of_this_one(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("MemoryError\n")
    with pytest.raises(QuantizeError) as caught:
        run(tmp_path, "os.kill(os.getpid(), 9)")
    assert "was killed (SIGKILL)" in caught.value.what
    assert "No sign that memory ran out" in caught.value.hint


@pytest.fixture
def small_cgroup(tmp_path: Path) -> Iterator[Path]:
    """A cgroup of 64 MiB, where tests may make one."""
    group = Path(f"/sys/fs/cgroup/memory/qpack-test-{os.getpid()}")
    limit = "memory.limit_in_bytes"
    if not group.parent.is_dir():
        group, limit = Path(f"/sys/fs/cgroup/qpack-test-{os.getpid()}"), "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(2**26))
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    yield group
    group.rmdir()


def test_a_worker_that_the_kernel_ends_for_its_memory_is_told_from_one_that_was_killed(
    tmp_path: Path, small_cgroup: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho $$ > {small_cgroup}/cgroup.procs\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    body = "time.sleep(1.5)\nkept = []\nwhile True: kept.append(b'x' * 2**20)"
    with pytest.raises(QuantizeError) as caught:
        run(tmp_path, body, python=python)
    assert "script ran out of host memory: the kernel" in caught.value.what
    assert "It may use 0.06 GiB (the limit of its cgroup)" in caught.value.hint


def test_a_disk_that_fills_up_in_a_worker_is_an_environment_error(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, check=coded("disk-full")):
        run(tmp_path, "qpack_worker.main(lambda *_: open('/dev/full', 'w').write('x' * 100000), beside.Job)")


def test_an_interpreter_that_is_not_there_is_an_environment_error(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, check=coded("no-interpreter")):
        run(tmp_path, "", python=tmp_path / "no" / "python")


def test_threads_of_a_worker_spin_shortly_unless_the_user_says_how_they_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
    for name in names:
        monkeypatch.delenv(name, raising=False)
    asked = f"beside.Sum(1, tuple(os.environ.get(name, '') for name in {names!r}))"
    body = f"qpack_worker.main(lambda *_: {asked}, beside.Job)"
    assert run(tmp_path, body)[0].path == ("", "1000")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert run(tmp_path, body)[0].path == ("ACTIVE", "")
    monkeypatch.setenv("GOMP_SPINCOUNT", "300000")
    assert run(tmp_path, body)[0].path == ("ACTIVE", "300000")


def test_a_worker_never_sees_qpack(tmp_path: Path) -> None:
    bare = Path(sys.base_prefix) / "bin" / "python3"
    result, _ = run(tmp_path, "qpack_worker.main(lambda *_: beside.Sum(1, tuple(sys.path)), beside.Job)", python=bare)
    root = str(Path(__file__).parents[2])
    assert root not in result.path
