"""What the contract tests of registries share: how to open each kind, releases to push, and a process that pushes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from registry.core.protocol import Registry, Releases, Resolved
from registry.registries import open_mlflow, open_oci, open_registry

REPOSITORY = Path(__file__).parents[2]

# What opens a registry of each kind at a location. A new kind needs a line here to be tested.
KINDS: dict[str, Callable[[str], Releases]] = {
    "local": lambda folder: open_registry("local", folder),
    "oci": lambda host_and_prefix: open_oci(
        host_and_prefix.partition("/")[0], prefix=host_and_prefix.partition("/")[2], plain_http=True
    ),
    "mlflow": lambda host: open_mlflow(host, plain_http=True),
}

Files = dict[str, bytes]

FILES: Files = {
    "README.md": b"# card\n",
    "model/config.json": b"{}",
    "model/model.safetensors": bytes(range(256)) * 4096,
    "model/copy/also.safetensors": bytes(range(256)) * 4096,
    "model/empty.txt": b"",
}

# Pushes a folder from a process of its own. With KILL_AT it kills itself just before its KILL_AT-th step that the
# interpreter reports (opening, linking, renaming, removing, locking a file ...); with KILL_AT 0 it prints their number.
PUSHER = """
import os, signal, sys
from pathlib import Path
from registry.core.protocol import PushRequest
from tests.contract.registries_contract import KINDS
kind, location, folder, name, kill_at, consume = sys.argv[1:]
registry = KINDS[kind](location)
steps = 0
def step(event, _):
    global steps
    if event == "open" or event.startswith(("os.", "shutil.", "tempfile.", "fcntl.", "socket.")):
        steps += 1
        if steps == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)
if int(kill_at) >= 0:
    sys.addaudithook(step)
request = PushRequest(name, None, "latest", actor="pusher", consume=consume == "consume")
found = registry.push(Path(folder), request, annotations={})
print(steps, found.version, found.already_there)
"""


def write(folder: Path, files: Files) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def contents(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pushing(
    kind: str, location: str, folder: Path, name: str, *, kill_at: int = -1, consume: bool = False
) -> subprocess.Popen[str]:
    how = "consume" if consume else "copy"
    return subprocess.Popen(
        [sys.executable, "-c", PUSHER, kind, location, str(folder), name, str(kill_at), how],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check_pulled(registry: Releases, scratch: Path, expected: dict[str, Files]) -> tuple[Resolved, ...]:
    """Every version of `m` is one of `expected` by content, all of it."""
    found = registry.list()
    for number, resolved in enumerate(found):
        dest = scratch / f"pulled-{number}"
        registry.pull(f"{resolved.name}:{resolved.version}", dest)
        assert contents(dest) in expected.values()
    return found


def check_whole(registry: Registry, scratch: Path, expected: dict[str, Files]) -> tuple[Resolved, ...]:
    """`check_pulled`, and the history tells of each version once."""
    found = check_pulled(registry, scratch, expected)
    pushes = [event for event in registry.history() if event.what == "push"]
    assert [(event.name, event.version, event.digest) for event in pushes] == [
        (resolved.name, resolved.version, resolved.digest) for resolved in found
    ]
    return found
