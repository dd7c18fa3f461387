"""Speed on a machine that does something else: a real build and a real benchmark beside busy loops."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qpack.core.speed import MOST_OTHER_WORK
from tests.scenarios.command import Finished, Qpack
from tests.scenarios.conftest import lay_out

pytestmark = [pytest.mark.engines, pytest.mark.slow("a build whose load runs beside other work, twice")]

# The floor is so low that any ratio passes it.
SETTINGS = (
    *("--set", "gates.throughput_ratio=0.0001", "--set", "measure.concurrency=[1, 2]"),
    *("--set", "measure.repeats=2", "--set", "measure.input_tokens=16", "--set", "measure.output_tokens=16"),
)


@contextmanager
def busy() -> Iterator[None]:
    """One process that never rests for each usable core. They end with this one, whatever happens."""
    parent = os.getpid()
    loop = f"import os\nwhile os.getppid() == {parent}:\n  sum(range(10 ** 5))"
    loops = [subprocess.Popen([sys.executable, "-c", loop]) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for one in loops:
            one.kill()
            one.wait()


def performances(home: Path) -> dict[str, dict[str, Any]]:
    """The stored loads by key."""
    return {
        path.parent.name: json.loads(path.read_text())
        for path in (home / "store" / "performance").glob("*/result.json")
    }


@pytest.fixture(scope="module")
def beside(tiny_model: Path, engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Qpack, Finished]:
    """A build with a gate on speed, all of it beside busy loops."""
    qpack = lay_out(tmp_path_factory.mktemp("shared") / "folder", tiny_model, engine_home)
    with busy():
        return qpack, qpack("build", "recipe.yaml", *SETTINGS, timeout=1800)


def test_a_build_beside_busy_loops_says_so_and_decides_no_gate_on_speed(beside: tuple[Qpack, Finished]) -> None:
    qpack, done = beside
    assert done.code == 7, done.err
    undecided = [line for line in done.err.splitlines() if "throughput_ratio[" in line]
    assert len(undecided) == 2
    assert all(line.startswith("error[gate-undecided]") for line in undecided)
    assert done.err.count("warning: other work took") == 2, "of each of the two models"
    found = performances(qpack.home)
    assert len(found) == 2
    for one in found.values():
        assert one["result"]["latency"]["other_work"]["share"] > MOST_OTHER_WORK


def test_its_report_says_so_and_shows_no_speed_in_a_tile(beside: tuple[Qpack, Finished]) -> None:
    qpack, _ = beside
    assert qpack("report", "recipe.yaml", *SETTINGS, "-o", "report.html").code == 0
    text = (qpack.cwd / "report.html").read_text()
    assert "Other work took" in text
    assert "Output tokens/s, 2 clients</dt>" not in text


def test_the_next_build_measures_speed_again_and_nothing_else(beside: tuple[Qpack, Finished]) -> None:
    qpack, _ = beside
    before = performances(qpack.home)
    others = {path: path.stat().st_mtime_ns for part in ("language", "accuracy", "quantize")
              for path in (qpack.home / "store" / part).glob("*/result.json")}  # fmt: skip
    done = qpack("build", "recipe.yaml", *SETTINGS, timeout=1800)
    after = performances(qpack.home)
    assert before.keys() == after.keys()
    assert all(after[key]["made"]["at"] > before[key]["made"]["at"] for key in before)
    assert {path: path.stat().st_mtime_ns for path in others} == others
    # What it finds depends on what else runs here now: either the gates on speed are decided, or it says again why not.
    quiet = not any(
        (one["result"]["latency"]["other_work"] or {"share": 0})["share"] > MOST_OTHER_WORK for one in after.values()
    )
    assert quiet == ("throughput_ratio[" not in done.err), done.err


def test_a_benchmark_beside_busy_loops_says_so(
    tiny_model: Path, engine_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "home").mkdir()
    (folder / "home" / "envs").symlink_to(engine_home / "envs")
    qpack = Qpack(folder / "home", folder, {"VLLM_CPU_OMP_THREADS_BIND": "nobind"})
    with busy():
        done = qpack(
            "bench", tiny_model, "--concurrency", "1", "--repeats", "2", "--input-tokens", "16",
            "--output-tokens", "16", "--kv-cache-gib", "0.1", "--flag", "enforce-eager", timeout=900,
        )  # fmt: skip
    assert done.code == 0, done.err
    assert "other work took" in done.out
    assert "warning: other work took" in done.err
