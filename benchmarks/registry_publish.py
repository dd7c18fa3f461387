"""Publishing a large artifact to the local registry, against hashing it once with all cores.

    python benchmarks/registry_publish.py [--gib 1] [--rounds 3] [--folder FOLDER]

Makes an artifact of random weights (it can't be compressed, and no two blocks are the same), and measures side by side:
hashing it once, copying it once, publishing it (copied in, and taken over by links as `qpack build` does) and
publishing it again with another card and the same weights; then the same from one local registry to another. Each
publication is a process of its own, so that its peak memory is known; what was written before is on the disk (sync)
before the clock starts. The disk has to hold about three times the artifact.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qpack.core.hashing import in_threads, sha256

FILES = 4
PIECE = 2**24
PUSH = """
import resource, sys, time
from pathlib import Path
from registry.core.protocol import PushRequest
from registry.local.registry import LocalRegistry
root, folder, how = sys.argv[1:]
local, before = LocalRegistry(Path(root)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
if how == "registry":
    local.put(LocalRegistry(Path(folder)).bundle("m"), PushRequest("m", None, "latest", actor="bench"))
else:
    local.push(Path(folder), PushRequest("m", None, "latest", actor="bench", consume=how == "links"), annotations={})
print(time.perf_counter() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def make(folder: Path, gib: float) -> None:
    """Random weights in four files, and a card."""
    folder.mkdir()
    for number in range(FILES):
        with (folder / f"model-{number}.safetensors").open("wb") as file:
            for _ in range(int(gib * 2**30 / FILES / PIECE)):
                file.write(os.urandom(PIECE))
    (folder / "README.md").write_text("# card\n")


def hashing(folder: Path) -> float:
    """Seconds to hash every file once, several at once."""
    started = time.perf_counter()
    in_threads(sha256, sorted(folder.iterdir()))
    return time.perf_counter() - started


def copying(folder: Path, target: Path) -> float:
    """Seconds to copy every file and sync it."""
    started = time.perf_counter()
    shutil.copytree(folder, target)
    for path in target.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return seconds


def push(root: Path, folder: Path, how: str) -> tuple[float, float]:
    """Seconds that a push takes, and the MiB by which the peak of its memory grew."""
    command = [sys.executable, "-c", PUSH, str(root), str(folder), how]
    took, grew = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(took), float(grew)


def another_card(folder: Path, number: int) -> None:
    """Replace the card; the weights stay."""
    (folder / "README.md").unlink()
    (folder / "README.md").write_text(f"# another card {number}\n")


def main() -> None:
    """Measure, and print after every round median seconds and the ratio to hashing in the same round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    rows: dict[str, list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory(dir=asked.folder) as made:
        scratch = Path(made)
        folder = scratch / "artifact"
        make(folder, asked.gib)
        os.sync()
        for number in range(asked.rounds):
            once = hashing(folder)
            copied = copying(folder, scratch / "copy")
            found = {"hash once": (once, 0.0), "copy once, synced": (copied, 0.0)}
            for how in ("copies", "links"):
                root, mine = scratch / f"registry-{how}", scratch / f"mine-{how}"
                shutil.copytree(folder, mine, copy_function=os.link)
                os.sync()
                found[f"publish ({how})"] = push(root, mine, how)
                another_card(mine, number)
                found[f"publish again, other card ({how})"] = push(root, mine, how)
                if how == "links":
                    other = scratch / "other"
                    os.sync()
                    found["to another registry"] = push(other, root, "registry")
                    another_card(mine, -1 - number)
                    push(root, mine, how)
                    found["to another registry again, other card"] = push(other, root, "registry")
                    shutil.rmtree(other)
                shutil.rmtree(root)
                shutil.rmtree(mine)
            for name, (seconds, grew) in found.items():
                rows.setdefault(name, []).append((seconds, seconds / once, grew))
            table(number + 1, rows)


def table(rounds: int, rows: dict[str, list[tuple[float, float, float]]]) -> None:
    """Print a table: medians over the rounds so far, so that a run that is stopped has told something."""
    print(f"{rounds} rounds")
    print("| What | Median seconds | Times hashing once | Memory grew by, MiB |\n| --- | --- | --- | --- |")
    for name, taken in rows.items():
        seconds, ratio, grew = (statistics.median(column) for column in zip(*taken, strict=True))
        print(f"| {name} | {seconds:.2f} | {ratio:.2f} | {grew:.0f} |", flush=True)


if __name__ == "__main__":
    main()
