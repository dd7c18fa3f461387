"""What becomes of the local registry when things go wrong: kills, full disks, rivals, damage, hostile manifests.

    python benchmarks/registry_faults.py [--kills 240] [--reads 2400] [--seed 1] [--json]

Every fault is a real one: SIGKILL at random points (half of them at a random step that the interpreter reports, half
after a random time), real small file systems, processes that run at once, bits that are flipped in blobs. After each,
everything that the registry names is pulled and held against what was published. Prints the table that
docs/explanation/reliability.md holds; exit code 1 if anything was lost or wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from registry_world import ALIAS, NAME, Row, World, forked, killed, promote, push, read, remove

from qpack.core.errors import RegistryError
from qpack.pipeline.rejudge import rejudge
from registry.core import modelpack
from registry.lifecycle import promotion, verification
from registry.local.index import CHECKSUM, UNSEALED
from registry.local.registry import LocalRegistry


def kills(scratch: Path, times: int, dice: random.Random) -> Iterator[Row]:
    """SIGKILL during push, pull, promote, remove and gc, `times` in all."""
    each = times // 5
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
        now = promotion.points_at(world.local, NAME, ALIAS)
        return lambda: promote(world.local, "2" if now == "1" else "1")

    for _ in killed(row, world, each, dice, other):
        if promotion.points_at(world.local, NAME, ALIAS) not in ("1", "2"):
            row.wrong.append("the alias points nowhere")
    yield row

    world = World(scratch / "remove")
    row = Row("kill -9 during a removal")

    def oldest() -> Callable[[], object]:
        for _ in range(3 - len(world.local.list())):
            world.push()
        version = world.local.list()[0].version
        return lambda: remove(world.local, version)

    for _ in killed(row, world, each, dice, oldest):
        if dice.random() < 0.3:
            world.local.collect(dry_run=False)
            row.wrong += [] if world.local.collect(dry_run=True).bytes_freed == 0 else ["gc left something behind"]
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
            verification.whole(world.local, NAME, rejudge)
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
    row = Row("two pushes, two promotions, two removals and gc at once")
    world = World(scratch / "rivals")
    for _ in range(rounds):
        shutil.rmtree(world.local.root, ignore_errors=True)
        for _ in range(3):
            world.push()
        made = [world.release(), world.release()]
        works: list[Callable[[], object]] = [
            *(lambda m=m: push(world.local, *m) for m in made),
            *(lambda v=v: promote(world.local, v) for v in "12"),
            lambda: remove(world.local, "1"),
            lambda: remove(world.local, "2", drop_aliases=True),
            lambda: world.local.collect(dry_run=False),
        ]
        threads = [threading.Thread(target=forked, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        events = world.local.history()
        pushed, gone = (sum(event.what == what for event in events) for what in ("push", "remove"))
        row.saw(f"both published, {gone} removed")
        if pushed != 5:
            row.wrong.append(f"{pushed} pushes in the history, not 5")
        row.wrong += world.faults()
        world.local.collect(dry_run=False)
        row.wrong += world.faults()
    yield row


def moving_alias(scratch: Path, reads: int) -> Iterator[Row]:
    """Everything that commands read of a release by its alias, while the alias moves and moves: of one version each."""
    from qpack.pipeline.find import read_release
    from qpack.serve import served_release

    world = World(scratch / "moving")
    world.push()
    world.push()
    promote(world.local, "1")
    row, ref, root, stop = (
        Row("reads by an alias while it moves"),
        f"{NAME}:{ALIAS}",
        world.local.root,
        threading.Event(),
    )
    known = {r.digest: (r.version, world.local.read(r, "release.json")) for r in world.local.list()}
    models = {digest: json.loads(data)["quantized"]["digest"] for digest, (_, data) in known.items()}

    def move() -> None:
        while not stop.is_set():
            for version in "21":
                promote(world.local, version)

    def read_by_show() -> tuple[str, ...]:
        found, release, serving = read_release(root, ref)
        return found.digest, release.quantized.digest, serving["model"]["digest"]

    def read_by_serve() -> tuple[str, ...]:
        found = served_release.find(root, ref)
        return found.resolved.digest, found.release.quantized.digest, found.manifest.model.digest

    def read_by_verify() -> tuple[str, ...]:
        report = verification.verify(world.local, ref, rejudge)
        if not report.ok:
            row.wrong.append(f"verify: {report.findings}")
        return (report.digest,)

    def read_by_pull() -> tuple[str, ...]:
        dest = world.scratch / "check"
        found = world.local.pull(ref, dest)
        release = json.loads((dest / "release.json").read_bytes())
        shutil.rmtree(dest)
        return found.digest, release["quantized"]["digest"]

    def read_by_publish() -> tuple[str, ...]:
        found = world.local.resolve(ref)
        packed = world.local.bundle(found)
        files = {record.path: packed.source(record) for record in packed.contents.files}
        return found.digest, packed.digest, json.loads(files["release.json"].read_bytes())["quantized"]["digest"]

    def read_by_reproduce() -> tuple[str, ...]:
        found, release, _ = read_release(root, ref)
        config = world.local.open(found, "model/config.json")
        wanted = {record.path: record.sha256 for record in release.quantized.files}["config.json"]
        return found.digest, release.quantized.digest if config.name == wanted else "another version's file"

    mover = threading.Thread(target=move)
    mover.start()
    ways = (read_by_show, read_by_serve, read_by_verify, read_by_pull, read_by_publish, read_by_reproduce)
    try:
        for number in range(reads):
            digest, *others = ways[number % len(ways)]()
            if not set(others) <= {digest, models[digest]}:
                row.wrong.append(f"{ways[number % len(ways)].__name__} mixed two versions")
            row.saw(f"of version {known[digest][0]}")
    finally:
        stop.set()
        mover.join()
    row.moved = sum(event.what == "promote" for event in world.local.history())
    if row.moved < reads / 100:
        row.wrong.append(f"the alias moved {row.moved} times alone")
    yield row


def damaged_index(scratch: Path, times: int, dice: random.Random) -> Iterator[Row]:
    """Bytes of index.json flipped, cut off, zeroed, swapped: what is still answered must be the right answer."""
    world = World(scratch / "index")
    for _ in range(3):
        world.push()
    promote(world.local, "2")
    row, path = Row("a damaged index.json"), world.local.root / "index.json"
    whole = path.read_bytes()
    reads: tuple[Callable[[], object], ...] = (
        world.local.list,
        world.local.history,
        lambda: world.local.aliases(NAME),
        lambda: verification.verify(world.local, f"{NAME}:{ALIAS}", rejudge),
    )
    right = [ask() for ask in reads]
    for number in range(times):
        data, at, other = bytearray(whole), dice.randrange(len(whole)), dice.randrange(len(whole))
        if number % 4 == 0:
            data[at] ^= 1 << dice.randrange(8)
        elif number % 4 == 1:
            del data[at:]
        elif number % 4 == 2:
            data[at : at + 64] = bytes(len(data[at : at + 64]))
        else:
            data[at], data[other] = data[other], data[at]
        path.write_bytes(data)
        for ask, wanted in zip(reads, right, strict=True):
            try:
                found = ask()
            except RegistryError:
                row.saw("refused")
            else:
                row.saw("right" if found == wanted else "wrong")
                row.wrong += [] if found == wanted else [f"byte {at} was damaged, and the answer another one"]
    path.write_bytes(whole)
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
            lambda: verification.whole(world.local, NAME, rejudge),
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
    # Whoever changes the index without qpack says so.
    index["annotations"][CHECKSUM] = UNSEALED
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
    parser.add_argument("--reads", type=int, default=2400)
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
            *moving_alias(scratch, asked.reads),
            *damaged_index(scratch, asked.reads // 5, dice),
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
