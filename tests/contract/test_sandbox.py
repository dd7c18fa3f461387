"""Code that models write, attacked: what runs in the sandbox opens, starts, reaches and ends nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from evals.tasks import code_items, generated, sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's seccomp")


def gives(body: str, *calls: list[object]) -> list[dict[str, object]] | None:
    """What a function `f` gives whose file this is."""
    return sandbox.values(textwrap.dedent(body), "f", calls or ([1],))


def test_honest_code_gives_its_values_and_its_exceptions() -> None:
    code = """
        import math, collections
        def f(x):
            return {"root": math.isqrt(x), "most": collections.Counter(str(x)).most_common(1)[0]}
    """
    assert gives(code, [144], [-1]) == [{"value": {"root": 12, "most": ["4", 2]}}, {"error": "ValueError"}]


OPEN = "import posix\ndef f(x):\n    "
ESCAPES = {
    "read a file": f"{OPEN}return posix.open('/etc/passwd', 0)",
    "read a file by Python": "def f(x):\n    return open('/etc/passwd').read()",
    "list a folder": f"{OPEN}return posix.listdir('/')",
    "look at a path": f"{OPEN}return posix.stat('/etc/passwd').st_size",
    "fork": f"{OPEN}return posix.fork()",
    "fork for ever": f"{OPEN}while True: posix.fork()",
    "start a program": f"{OPEN}return posix.execv('/bin/true', ['true'])",
    "spawn a program": f"{OPEN}return posix.posix_spawn('/bin/true', ['true'], {{}})",
    "start a thread": "import _thread\ndef f(x):\n    return _thread.start_new_thread(print, ())",
    "kill its parent": f"{OPEN}return posix.kill(posix.getppid(), 9)",
    "kill everything": f"{OPEN}return posix.kill(-1, 9)",
    "raise its limits": "import resource\ndef f(x):\n    return resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "import what isn't there": "import socket\ndef f(x):\n    return socket.socket()",
}


@pytest.mark.parametrize("what", ESCAPES)
def test_an_escape_is_an_exception_in_the_child(what: str) -> None:
    answers = gives(ESCAPES[what])
    assert answers is not None
    assert "error" in answers[0], answers


SYSCALLS = {
    "socket": 41, "connect": 42, "clone": 56, "clone3": 435, "vfork": 58, "execve": 59, "open": 2, "openat": 257,
    "openat2": 437, "creat": 85, "kill": 62, "tkill": 200, "tgkill": 234, "ptrace": 101, "unlink": 87, "mkdir": 83,
    "chmod": 90, "mount": 165, "unshare": 272, "io_uring_setup": 425, "bpf": 321, "process_vm_writev": 311,
    "memfd_create": 319, "prctl": 157, "seccomp": 317, "ioctl": 16, "pidfd_send_signal": 424, "sendfile": 40,
    "userfaultfd": 323,
}  # fmt: skip


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
def test_no_system_call_that_reaches_out_is_left_whatever_is_done_to_the_interpreter() -> None:
    """Asked of the kernel by number, past Python: EPERM, also in the 32-bit numbers of x32."""
    code = """
        import ctypes
        def f(numbers):
            libc = ctypes.CDLL(None, use_errno=True)
            return [[libc.syscall(n, 0, 0, 0, 0, 0, 0), ctypes.get_errno()] for n in numbers]
    """
    numbers = [*SYSCALLS.values(), *(n | 0x40000000 for n in SYSCALLS.values())]
    answers = gives(code, [numbers])
    assert answers is not None
    assert answers[0]["value"] == [[-1, 1]] * len(numbers)


def test_a_port_that_listens_here_is_not_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        code = """
            import ctypes
            def f(port):
                libc = ctypes.CDLL(None)
                s = libc.socket(2, 1, 0)
                address = bytes([2, 0]) + port.to_bytes(2, "big") + bytes([127, 0, 0, 1]) + bytes(8)
                return [s, libc.connect(s, address, 16)]
        """
        assert gives(code, [server.getsockname()[1]]) == [{"value": [-1, -1]}]
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_written_file_is_not_there(tmp_path: Path) -> None:
    code = "import posix\ndef f(path):\n    return posix.open(path, 0o101)"
    assert gives(code, [str(tmp_path / "file")]) == [{"error": "PermissionError"}]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "body",
    [
        "import posix\ndef f(x):\n    while True: posix.write(1, b'x' * 65536)",
        "import posix\ndef f(x):\n    posix._exit(0)",
        "import ctypes\ndef f(x):\n    ctypes.string_at(0)",
        "def f(x):\n    return 'x' * 300_000",
        "x = 1" * 20_000,
    ],
    ids=["endless output", "ends early", "crashes", "a long answer", "long code"],
)
def test_what_gives_no_answer_counts_as_none_and_costs_bounded_memory(body: str) -> None:
    assert gives(body) is None


def test_code_that_hangs_or_takes_memory_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gives("def f(x):\n    return len('x' * (1 << 33))") == [{"error": "MemoryError"}]
    monkeypatch.setattr(sandbox, "WALL_SECONDS", 1.0)
    assert gives("def f(x):\n    while True: pass") is None
    deaf = "def f(x):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass"
    assert gives(deaf) is None


def test_a_reply_that_claims_to_equal_everything_or_speaks_for_the_child_is_not_right() -> None:
    check = {"function": "f", "calls": [[1], [2]], "right": [2, 3]}
    always = "class E(int):\n    __eq__ = lambda a, b: True\ndef f(x):\n    return E(7)"
    speaks = 'import posix\ndef f(x):\n    posix.write(1, b\'[{"value": 2}, {"value": 2}]\'); posix._exit(0)'
    for code in (always, speaks, "def f(x):\n    return float(x + 1)", "def g(x):\n    return x + 1"):
        assert not code_items.right(sandbox.values(code, "f", check["calls"]), check), code
    assert code_items.right(sandbox.values("def f(x):\n    return x + 1", "f", check["calls"]), check)


def test_a_child_ends_with_its_parent() -> None:
    script = (
        "import sys; sys.path.insert(0, '.'); from evals.tasks import sandbox\n"
        "sandbox.require(); print('go', flush=True)\n"
        "sandbox.WALL_SECONDS = 60; sandbox.values('def f(x):\\n  while True: pass', 'f', [[1]])"
    )
    command, here = [sys.executable, "-c", script], Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"go\n"
        children: list[int] = []
        while not children:
            file = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
            children = [int(pid) for pid in file.read_text().split()]
        while running(children[0]) and not confined(children[0]):
            pass
        parent.send_signal(signal.SIGKILL)
    while running(children[0]):
        pass


def running(pid: int) -> bool:
    """Whether a process is there and isn't a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def confined(pid: int) -> bool:
    """Whether a process has its filter."""
    try:
        return "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_machine_without_the_filter_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A child that confines nothing is noticed, as is one that doesn't start."""
    for text, why in (
        (sandbox.CHILD.read_text().replace("    confine()\n", ""), "doesn't hold"),
        (
            sandbox.CHILD.read_text().replace('"x86_64": (', '"none": (').replace('"aarch64": (', '"no": ('),
            "doesn't start",
        ),
    ):
        child = tmp_path / "child.py"
        child.write_text(text)
        monkeypatch.setattr(sandbox, "CHILD", child)
        with pytest.raises(sandbox.NoSandboxError, match=why):
            sandbox.require.__wrapped__()


def test_an_items_own_reference_is_right_and_a_wrong_function_is_not() -> None:
    """The prompts' functions, written by hand for one item of each kind."""
    written = {
        "shift_by": "def {0}(text):\n    import string\n    k = {1}\n    low = string.ascii_lowercase\n"
        "    return ''.join(low[(low.index(c) + k) % 26] if c in low else "
        "low[(low.index(c.lower()) + k) % 26].upper() if c.lower() in low else c for c in text)",
        "sum_divisible_by": "def {0}(numbers):\n    return sum(n for n in numbers if n % {1} == 0)",
        "chunks_of": "def {0}(items):\n    return [items[i:i + {1}] for i in range(0, len(items), {1})]",
        "digit_sum_base": "def {0}(n):\n    s = 0\n    while n:\n        s += n % {1}\n        n //= {1}\n    return s",
    }
    docs = code_items.functions()
    for start, body in written.items():
        doc = next(d for d in docs if json.loads(d["check"])["function"].startswith(start))
        name = json.loads(doc["check"])["function"]
        reply = "Here it is:\n```python\n" + body.format(name, name.rpartition("_")[2]) + "\n```\nIt works."
        assert generated.judge_code(doc, [reply]) == {"passes": 1.0}, name
        assert generated.judge_code(doc, [f"```python\ndef {name}(x):\n    return 0\n```"]) == {"passes": 0.0}
        assert generated.judge_code(doc, ["I can't."]) == {"passes": 0.0}


def test_the_items_are_distinct_and_the_same_each_time() -> None:
    docs = code_items.functions()
    assert len({doc["prompt"] for doc in docs}) == len(docs) == code_items.ITEMS
    assert docs == code_items.functions()
    assert len({json.loads(doc["check"])["function"] for doc in docs}) >= 40
