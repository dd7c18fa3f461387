"""What becomes of the local registry when things go wrong: kills, full disks, rivals, damage, hostile manifests.

    python benchmarks/registry_faults.py [--kills 240] [--seed 1] [--json]

Every fault is a real one: SIGKILL at random points (half of them at a random step that the interpreter reports, half
after a random time), real small file systems, processes that run at once, bits that are flipped in blobs. After each,
everything that the registry names is pulled and held against what was published. Prints the table that
docs/reliability.md holds; exit code 1 if anything was lost or wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from qpack.errors import RegistryError
from registry import lifecycle, modelpack, verification
from registry.local import LocalRegistry
from tests.unit.laid_out import laid_out

NAME, ALIAS = "m", "production"
STEPS = ("os.", "shutil.", "tempfile.", "fcntl.")
Tree = dict[str, bytes]


@dataclass
class Row:
    """A fault: how often it struck, what was seen, and what was wrong."""

    fault: str
    times: int = 0
    seen: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def saw(self, what: str) -> None:
        """Count an outcome."""
        self.times += 1
        self.seen[what] = self.seen.get(what, 0) + 1


class World:
    """A registry, the releases that may be in it, and everything that ever was published."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.local = LocalRegistry(scratch / "registry")
        self.expected: list[Tree] = []
        self.count = 0

    def release(self) -> tuple[Path, dict[str, str]]:
        """Another release folder, a little above 1 MB."""
        self.count += 1
        folder, notes = laid_out(self.scratch / f"made-{self.count}", self.count, width=320)
        self.expected.append(read(folder))
        return folder, notes

    def push(self) -> None:
        """Publish another release."""
        push(self.local, *self.release())

    def faults(self) -> list[str]:
        """Everything that is wrong with the registry now: it must be able to show all that it names, whole."""
        wrong = []
        try:
            releases, history = self.local.list(), self.local.history()
            for found in releases:
                dest = self.scratch / "check"
                self.local.pull(f"{found.name}:{found.version}", dest)
                if read(dest) not in self.expected:
                    wrong.append(f"{found.version} is no release that was published")
                shutil.rmtree(dest)
            pushes = [(e.version, e.digest) for e in history if e.what == "push"]
            if pushes != [(found.version, found.digest) for found in releases]:
                wrong.append("the history tells of other versions than there are")
            for alias in ("latest", ALIAS):
                moves = [e.version for e in history if e.alias == alias]
                if lifecycle.points_at(self.local, NAME, alias) != (moves[-1] if moves else None):
                    wrong.append(f"{alias} is not where the history says")
        except RegistryError as error:
            wrong.append(error.what)
        return wrong


def read(folder: Path) -> Tree:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def push(local: LocalRegistry, folder: Path, notes: dict[str, str]) -> None:
    """Publish a folder as the next version."""
    local.push(folder, NAME, None, "latest", annotations=notes, actor="pusher")


def promote(local: LocalRegistry, version: str) -> None:
    """Promote a version past the rule that its gates passed."""
    lifecycle.promote(local, f"{NAME}:{version}", ALIAS, (), lambda *_: False, actor="promoter", why="")


def forked(work: Callable[[], object], *, kill_at: int = 0, after: float | None = None) -> tuple[bool, int, float]:
    """Do `work` in a process of its own, killed before step `kill_at` or `after` seconds; 0 and None let it finish.

    Returns whether it was killed, how many steps it took, and how many seconds. Raises RuntimeError when it failed.
    """
    counted, write = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            os.close(counted)
            steps = 0

            def step(event: str, _: object) -> None:
                nonlocal steps
                if event == "open" or event.startswith(STEPS):
                    steps += 1
                    if steps == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(step)
            work()
            os.write(write, str(steps).encode())
            os._exit(0)
        except RegistryError:
            os._exit(8)
        except BaseException:
            traceback.print_exc()
            os._exit(70)
    os.close(write)
    if after is not None:
        timer = threading.Timer(after, os.kill, (child, signal.SIGKILL))
        timer.start()
    _, status = os.waitpid(child, 0) if after is None else _reap(child, timer)
    said = os.read(counted, 20)
    os.close(counted)
    code = os.waitstatus_to_exitcode(status)
    if code == 70:
        raise RuntimeError("the operation ended with an error that is none of the registry's")
    return code == -signal.SIGKILL, int(said or 0), time.monotonic() - started


def _reap(child: int, timer: threading.Timer) -> tuple[int, int]:
    # The timer must not hit another process that got the same number: it is stopped before the child is reaped.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    timer.cancel()
    timer.join()
    return os.waitpid(child, 0)


def killed(
    row: Row, world: World, times: int, dice: random.Random, operation: Callable[[], Callable[[], object]]
) -> Iterator[bool]:
    """Start `operation()` and kill it at a random point, until `times` were killed; yields whether this one was."""
    _, steps, seconds = forked(operation())
    for number in range(times * 3):
        if row.seen.get("killed") == times:
            return
        work = operation()
        if number % 2:
            was, _, _ = forked(work, after=dice.uniform(0, seconds))
        else:
            was, _, _ = forked(work, kill_at=dice.randint(1, steps))
        row.saw("killed" if was else "had finished")
        yield was
        row.wrong += world.faults()


def kills(scratch: Path, times: int, dice: random.Random) -> Iterator[Row]:
    """SIGKILL during push, pull, promote and gc, `times` in all."""
    each = times // 4
    world = World(scratch / "push")
    world.push()
    row = Row("kill -9 during a push")

    def another() -> Callable[[], object]:
        made = world.release()
        return lambda: push(world.local, *made)

    for _ in killed(row, world, each, dice, another):
        if dice.random() < 0.3:
            world.local.collect(dry_run=False)
            row.wrong += [] if world.local.collect(dry_run=True).bytes_freed == 0 else ["gc left something behind"]
        while len(world.local.list()) > 6:  # a registry forgets nothing, and looking at everything takes time
            shutil.rmtree(world.local.root)
            world.push()
    yield row

    world = World(scratch / "pull")
    world.push()
    whole, dest = world.expected[0], scratch / "pulled"
    row = Row("kill -9 during a pull")

    def pull() -> Callable[[], object]:
        shutil.rmtree(dest, ignore_errors=True)
        return lambda: world.local.pull(NAME, dest)

    for _ in killed(row, world, each, dice, pull):
        if dest.exists() and read(dest) != whole:
            row.wrong.append("a folder was pulled in part")
    yield row

    world = World(scratch / "promote")
    world.push()
    world.push()
    row = Row("kill -9 during a promotion")

    def other() -> Callable[[], object]:
        now = lifecycle.points_at(world.local, NAME, ALIAS)
        return lambda: promote(world.local, "2" if now == "1" else "1")

    for _ in killed(row, world, each, dice, other):
        if lifecycle.points_at(world.local, NAME, ALIAS) not in ("1", "2"):
            row.wrong.append("the alias points nowhere")
    yield row

    world = World(scratch / "gc")
    world.push()
    row = Row("kill -9 during gc")

    def rubbish() -> Callable[[], object]:
        for number in range(30):
            data = dice.randbytes(2000)
            world.local.blob(modelpack.digest_of(data)).write_bytes(data)
            (world.local.root / "ingest" / f"dead-{number}").mkdir(exist_ok=True)
        return lambda: world.local.collect(dry_run=False)

    for _ in killed(row, world, each, dice, rubbish):
        pass
    world.local.collect(dry_run=False)
    row.wrong += [] if world.local.collect(dry_run=True).bytes_freed == 0 else ["gc left something behind"]
    yield row


@contextlib.contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[Path | None]:
    """A real file system of that size, or None where none can be mounted."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disk(scratch: Path, dice: random.Random) -> Iterator[Row]:
    """Pushes and promotions onto a disk with little or no room left."""
    row = Row("disk full during a push or a promotion")
    with disk(scratch / "small", 12) as small:
        if small is None:
            yield row
            return
        world = World(scratch / "full")
        world.local = LocalRegistry(small / "registry")
        world.push()
        world.push()
        for number in range(30):
            before = world.local.list(), world.local.history()
            made = world.release()
            room = os.statvfs(small)
            with (small / "filler").open("wb") as filler, contextlib.suppress(OSError):
                filler.write(
                    b"x" * max(0, room.f_bavail * room.f_bsize - dice.randint(0, 700_000 if number % 2 else 9000))
                )
            try:
                if number % 2:
                    push(world.local, *made)
                else:
                    promote(world.local, str(1 + number // 2 % 2))
            except RegistryError as error:
                row.saw("refused" if "no space left" in error.what else error.what)
                if (world.local.list(), world.local.history()) != before:
                    row.wrong.append("a refused change left something")
            else:
                row.saw("had room")
            (small / "filler").unlink()
            row.wrong += world.faults()
            if len(world.local.list()) > 3:
                shutil.rmtree(world.local.root)
                world.push()
                world.push()
    yield row


def read_only(scratch: Path) -> Iterator[Row]:
    """Reading from a disk that can't be written, and refusing to write."""
    row = Row("read-only disk")
    with disk(scratch / "ro", 12) as place:
        if place is not None:
            world = World(scratch / "readonly")
            world.local = LocalRegistry(place / "registry")
            world.push()
            made = world.release()
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
            row.wrong += world.faults()
            verification.whole(world.local, NAME)
            row.saw("read and verified")
            for work in (
                lambda: push(world.local, *made),
                lambda: promote(world.local, "1"),
                lambda: world.local.collect(dry_run=False),
            ):
                try:
                    work()
                except RegistryError as error:
                    row.saw("refused" if "Read-only" in error.what else error.what)
                else:
                    row.wrong.append("something was written to a read-only disk")
    yield row


def rivals(scratch: Path, rounds: int) -> Iterator[Row]:
    """Processes at once: pushes of their own, promotions to the same alias, and gc beside them."""
    row = Row("two pushes, two promotions and gc at once")
    world = World(scratch / "rivals")
    world.push()
    world.push()
    for _ in range(rounds):
        made = [world.release(), world.release()]
        works: list[Callable[[], object]] = [
            *(lambda m=m: push(world.local, *m) for m in made),
            *(lambda v=v: promote(world.local, v) for v in "12"),
            lambda: world.local.collect(dry_run=False),
        ]
        threads = [threading.Thread(target=forked, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        there = len(world.local.list())
        row.saw("both published" if there == 4 else f"{there - 2} published")
        if there != 4:
            row.wrong.append(f"{there} versions after two pushes, not 4")
        row.wrong += world.faults()
        shutil.rmtree(world.local.root)
        world.push()
        world.push()
    yield row


def damage(scratch: Path, dice: random.Random) -> Iterator[Row]:
    """One bit of each blob flipped; then a manifest whose layers climb out of the folder that they are pulled to."""
    world = World(scratch / "damage")
    world.push()
    row = Row("a flipped bit in a blob")
    dest = scratch / "out" / "pulled"
    dest.parent.mkdir()
    for blob in sorted((world.local.root / "blobs" / "sha256").iterdir()):
        whole = blob.read_bytes()
        spoiled = bytearray(whole)
        spoiled[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        blob.chmod(0o600)
        blob.write_bytes(spoiled)
        refused = []
        for work in (
            lambda: world.local.pull(NAME, dest),
            lambda: verification.whole(world.local, NAME),
            lambda: promote(world.local, "1"),
        ):
            try:
                work()
            except RegistryError:
                refused.append(work)
        row.saw("found by pull, verify and promote")
        if len(refused) < 3 or any(dest.parent.iterdir()):
            row.wrong.append(f"{blob.name[:12]} was damaged, and served")
        blob.write_bytes(whole)
    row.wrong += world.faults()
    yield row

    row = Row("a path that climbs out, in somebody else's manifest")
    paths = ("../climbed", "/climbed", "a/../../climbed", "..", ".", "a//b", "./a", "a\\b", "", "a\0b", "model/../../x")
    for path in paths:
        value = json.loads(world.local.blob(world.local.resolve(NAME).digest).read_bytes())
        value["layers"][0]["annotations"][modelpack.FILEPATH] = path
        strange(world.local, value)
        pulls(row, world.local, dest)
    for digest in ("sha256:../../../../etc/hostname", "sha256:" + "0" * 63, "../index.json", 7, None):
        value = json.loads(world.local.blob(world.local.resolve(NAME).digest).read_bytes())
        value["layers"][0]["digest"] = digest
        strange(world.local, value)
        pulls(row, world.local, dest)
    yield row


def strange(local: LocalRegistry, manifest: dict[str, object]) -> None:
    """Put a manifest into the registry as version `evil`, as a program that copies OCI layouts would."""
    data = json.dumps(manifest).encode()
    digest = modelpack.digest_of(data)
    local.blob(digest).write_bytes(data)
    path = local.root / "index.json"
    index = json.loads(path.read_bytes())
    kept = [item for item in index["manifests"] if "evil" not in json.dumps(item)]
    entry = json.loads(json.dumps(kept[0]))
    notes = entry["annotations"]
    notes.update({"org.opencontainers.image.ref.name": f"{NAME}:evil", "org.qpack.version": "evil"})
    entry.update(digest=digest, size=len(data))
    path.write_text(json.dumps({**index, "manifests": [*kept, entry]}))


def pulls(row: Row, local: LocalRegistry, dest: Path) -> None:
    """Pull `evil`, which has to be refused before anything is written."""
    try:
        local.pull(f"{NAME}:evil", dest)
    except RegistryError:
        row.saw("refused")
    else:
        row.wrong.append("a hostile manifest was pulled")
    if any(dest.parent.iterdir()) or (dest.parent.parent / "climbed").exists() or Path("/climbed").exists():
        row.wrong.append("something was written outside")


def main() -> int:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=240)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    dice = random.Random(asked.seed)
    with tempfile.TemporaryDirectory(prefix="qpack-faults-") as made:
        scratch = Path(made)
        rows = [
            *kills(scratch, asked.kills, dice),
            *full_disk(scratch, dice),
            *read_only(scratch),
            *rivals(scratch, max(1, asked.kills // 24)),
            *damage(scratch, dice),
        ]
    if asked.json:
        print(json.dumps([vars(row) for row in rows], indent=1))
    else:
        print("| Fault | Times | What was seen | Lost or wrong |\n| --- | --- | --- | --- |")
        for row in rows:
            seen = ", ".join(f"{count} {what}" for what, count in row.seen.items()) or "could not be had here"
            print(f"| {row.fault} | {row.times} | {seen} | {len(row.wrong) or 'nothing'} |")
    for row in rows:
        for what in row.wrong[:5]:
            print(f"{row.fault}: {what}", file=sys.stderr)
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
