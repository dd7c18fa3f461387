"""How long a push and a pull over loopback take, beside skopeo copying the same bytes.

    python benchmarks/publish.py [MEBIBYTES] [ROUNDS]

Needs the programs of tests/system-packages.txt. A release of random bytes (the default is 1024 MiB, in four files) is
pushed to and pulled from Debian's docker-registry by `qpack` and by `skopeo`, in turn, each with an empty registry of
its own. The ratio is taken round by round, so that a machine that is slow for a while is slow for both. Whole processes
are timed, the start of Python included; processor time and the largest resident set are the kernel's. Both check every
digest; qpack also waits until what it pulled is on the disk (fsync), which skopeo doesn't, so the pull is shown without
that wait too.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from registry.core.protocol import PushRequest
from registry.local.registry import LocalRegistry

SKOPEO = ["skopeo", "copy", "--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false"]
# The same command line with a file system that has nothing to wait for.
NO_FSYNC = "import os, sys; os.fsync = lambda _: None; from qpack.cli.app import main; main()"


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """An empty docker-registry; yields its host:port."""
    folder.mkdir()
    log = folder / "log"
    (folder / "config.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n"
    )
    with log.open("w") as output:
        running = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.yml")], stdout=output, stderr=output
        )
    try:
        while not (found := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text())):
            time.sleep(0.01)
        yield found[1]
    finally:
        running.terminate()
        running.wait()
        shutil.rmtree(folder)


class Cost(NamedTuple):
    """What a process took."""

    seconds: float
    processor_seconds: float
    mebibytes: float


def timed(command: list[str], registry: Path) -> Cost:
    """The cost of a command that has to succeed."""
    environment = {**os.environ, "QPACK_REGISTRY": str(registry), "QPACK_HOME": str(registry.parent / "home")}
    started = time.perf_counter()
    process = os.posix_spawnp(
        command[0],
        command,
        environment,
        file_actions=[(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)],
    )
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return Cost(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main(mebibytes: int, rounds: int) -> None:
    """Publish and pull, and print a table after every round."""
    qpack = [sys.executable, "-m", "qpack.cli.app"]
    rows: dict[str, list[tuple[Cost, Cost]]] = {}
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        folder, registry = base / "release", base / "registry"
        (folder / "model").mkdir(parents=True)
        (folder / "README.md").write_text("# random bytes\n")
        for number in range(4):
            with (folder / f"model/model-{number}.safetensors").open("wb") as file:
                for _ in range(mebibytes // 4):
                    file.write(os.urandom(2**20))
        LocalRegistry(registry).push(
            folder, PushRequest("m", "1", None, actor="benchmark", consume=True), annotations={}
        )
        for turn in range(rounds):
            with server(base / "a") as theirs, server(base / "b") as ours:
                pushes = (
                    timed([*qpack, "publish", "m:1", "--to", f"oci://{ours}/m:1"], registry),
                    timed([*SKOPEO, f"oci:{registry}:m:1", f"docker://{theirs}/m:1"], registry),
                )
                # Whoever comes second finds a disk that is still busy with the first: take turns.
                pulls = [
                    ("qpack", [*qpack, "pull", f"oci://{ours}/m:1", str(base / "pulled")]),
                    ("skopeo", [*SKOPEO, f"docker://{theirs}/m:1", f"dir:{base / 'copied'}"]),
                    ("unsynced", [sys.executable, "-c", NO_FSYNC, "pull", f"oci://{ours}/m:1", str(base / "again")]),
                ]
                took = {}
                for name, command in pulls if turn % 2 else reversed(pulls):
                    os.sync()
                    took[name] = timed(command, registry)
                for name in ("pulled", "copied", "again"):
                    shutil.rmtree(base / name)
            rows.setdefault("push", []).append(pushes)
            rows.setdefault("pull", []).append((took["qpack"], took["skopeo"]))
            rows.setdefault("pull, no fsync", []).append((took["unsynced"], took["skopeo"]))
            table(mebibytes, turn + 1, rows)


def table(mebibytes: int, rounds: int, rows: dict[str, list[tuple[Cost, Cost]]]) -> None:
    """Print one row a direction: medians over the rounds so far, so that a run that is stopped has told something."""
    print(f"{mebibytes} MiB, {rounds} rounds; qpack / skopeo")
    print(f"{'':15}{'seconds':>16}{'ratio':>8}{'processor s':>16}{'ratio':>8}{'peak MiB':>14}")
    for name, pairs in rows.items():
        line = f"{name:15}"
        for field in ("seconds", "processor_seconds"):
            ours, theirs = (statistics.median(getattr(pair[i], field) for pair in pairs) for i in (0, 1))
            ratio = statistics.median(getattr(mine, field) / getattr(other, field) for mine, other in pairs)
            line += f"{f'{ours:.2f} / {theirs:.2f}':>16}{ratio:8.2f}"
        ours, theirs = (max(pair[i].mebibytes for pair in pairs) for i in (0, 1))
        print(f"{line}{f'{ours:.0f} / {theirs:.0f}':>14}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1024, int(sys.argv[2]) if len(sys.argv) > 2 else 5)
