"""The work store with several processes and with kill -9: one maker, no half results."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from qpack.core.records import Window
from qpack.core.store import Store
from tests.patience import PATIENCE

MAKER = """
import sys, time
from pathlib import Path
from qpack.core.records import Window
from qpack.core.store import Store
home, seconds = Path(sys.argv[1]), float(sys.argv[2])
def make(folder):
    with open(home / "made", "a") as file: file.write("x")
    for i in range(20):
        (folder / f"file{i}").write_bytes(bytes([i]) * 1000)
        time.sleep(seconds / 20)
    return Window(nll=1, tokens=2)
entry = Store(home).once("stage", "k", Window, make, inputs={})
print("reused" if entry.reused else "made")
"""


def maker(home: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", MAKER, str(home), str(seconds)], stdout=subprocess.PIPE, text=True)


def test_of_many_at_once_one_makes_and_the_others_read(tmp_path: Path) -> None:
    said = [p.communicate(timeout=PATIENCE)[0].strip() for p in [maker(tmp_path, 0.5) for _ in range(5)]]
    assert sorted(said) == ["made", *["reused"] * 4]
    assert (tmp_path / "made").read_text() == "x"


def test_a_maker_killed_at_any_point_leaves_nothing_and_the_next_one_makes_it_whole(
    tmp_path: Path, chance: random.Random
) -> None:
    for round_ in range(12):
        home = tmp_path / str(round_)
        home.mkdir()
        victim = maker(home, 0.2)
        while not (home / "made").exists():
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.25))
        os.kill(victim.pid, signal.SIGKILL)
        victim.communicate()
        before = Store(home).get("stage", "k", Window)
        said = maker(home, 0).communicate(timeout=PATIENCE)[0].strip()
        assert said == ("made" if before is None else "reused")
        entry = Store(home).get("stage", "k", Window)
        assert entry is not None
        assert all((entry.folder / f"file{i}").read_bytes() == bytes([i]) * 1000 for i in range(20))
        assert json.loads((entry.folder / "result.json").read_text())["result"] == {"nll": 1.0, "tokens": 2}
        assert not list((home / "store" / "drafts").iterdir())
