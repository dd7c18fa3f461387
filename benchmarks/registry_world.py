"""A registry to be broken, what is counted while it is, and processes that are killed at a random step."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from registry.core.protocol import PushRequest

sys.path.insert(0, str(Path(__file__).parents[1]))

from qpack.core.errors import RegistryError
from qpack.pipeline.rejudge import rejudge
from registry.core.protocol import Event, Ref
from registry.lifecycle import promotion
from registry.local.registry import LocalRegistry
from tests.unit.laid_out import laid_out

NAME, ALIAS = "m", "production"
DEMANDS = promotion.Demands((), lambda *_: False, rejudge)
STEPS = ("os.", "shutil.", "tempfile.", "fcntl.")
Tree = dict[str, bytes]


@dataclass
class Row:
    """A fault: how often it struck, what was seen, and what was wrong."""

    fault: str
    times: int = 0
    seen: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    moved: int = 0

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
            versions, aliases = replayed(history)
            if versions != {found.version: found.digest for found in releases}:
                wrong.append("the history tells of other versions than there are")
            if aliases != self.local.aliases(NAME):
                wrong.append("the aliases are not where the history says")
        except RegistryError as error:
            wrong.append(error.what)
        return wrong


def replayed(history: Iterable[Event]) -> tuple[dict[str, str], dict[str, str]]:
    """What the events say that there is: digests by version, and versions by alias."""
    versions: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for event in history:
        if event.what == "push":
            versions[event.version] = event.digest
        if event.alias is not None:
            aliases[event.alias] = event.version
        if event.what == "remove":
            del versions[event.version]
            aliases = {alias: version for alias, version in aliases.items() if alias not in event.dropped}
    return versions, aliases


def read(folder: Path) -> Tree:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def push(local: LocalRegistry, folder: Path, notes: dict[str, str]) -> None:
    """Publish a folder as the next version."""
    local.push(folder, PushRequest(NAME, None, "latest", actor="pusher"), annotations=notes)


def promote(local: LocalRegistry, version: str) -> None:
    """Promote a version past the rule that its gates passed."""
    promotion.promote(local, f"{NAME}:{version}", ALIAS, DEMANDS, actor="promoter", why="")


def remove(local: LocalRegistry, version: str, *, drop_aliases: bool = False) -> None:
    """Take a version away."""
    local.remove(Ref(NAME, version), drop_aliases=drop_aliases, actor="remover", note="an experiment")


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
