"""Builds that are killed, and builds at once: real engines on a very small real model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from qpack.core.errors import EnvironmentFailed, EvaluateError, QuantizeError
from qpack.pipeline.stages.catalog import STAGES
from tests.patience import PATIENCE
from tests.scenarios.command import Finished, Qpack
from tests.scenarios.conftest import REAL, lay_out

pytestmark = [pytest.mark.engines, pytest.mark.slow("builds that are killed in any stage, and two builds at once")]
Twice = tuple[Qpack, list[Finished]]
OURS = (EnvironmentFailed, QuantizeError, EvaluateError)

# GPTQ, so that the calibration takes part; its rows are what the held-out text is not. A short load: it is run again.
# Looks at accuracy, and a gate that the first of them decides: 4 bits can't lose nine of ten items here.
GPTQ = (
    REAL.replace("method: rtn", "method: gptq")
    .replace("quantize:\n", "calibration:\n  source: texts.txt\n  samples: 6\n  max_length: 64\nquantize:\n")
    .replace(
        "gates:\n",
        "gates:\n  accuracy_drop: 0.9\n",
    )
    .replace("samples: 4\n", "max_samples: 40\n")
    .replace(
        "gates:\n",
        "measure:\n  concurrency: [1, 2]\n  input_tokens: 16\n  output_tokens: 8\n  repeats: 2\n  rounds: 0\ngates:\n",
    )
)


# The tiny model only guesses, so its gate on accuracy is undecided whatever its figure is.
BUILD = ("build", "recipe.yaml", "--allow-failed-gates")


def prepared(folder: Path, tiny_model: Path, engine_home: Path) -> Qpack:
    qpack = lay_out(folder, tiny_model, engine_home)
    (folder / "recipe.yaml").write_text(GPTQ)
    (folder / "texts.txt").write_text(
        "".join(f"Text {i} is for the calibration. {'other words ' * 30}\n" for i in range(9))
    )
    return qpack


def weights(qpack: Qpack) -> str:
    (entry,) = (qpack.home / "store" / "quantize").glob("*/checkpoint/model.safetensors")
    return hashlib.sha256(entry.read_bytes()).hexdigest()


def published(qpack: Qpack) -> list[dict[str, object]]:
    listed: list[dict[str, object]] = json.loads(qpack("list", "--json").out)
    return listed


@dataclass(frozen=True)
class Ended:
    """A build that was hit: its exit code (negative for a signal), what it said, and whether it ran until then."""

    code: int
    err: str
    hit: bool


def hit(qpack: Qpack, after: float, strike: Callable[[int], object], stage: str = "") -> Ended:
    """Start a build, `strike` its process id `after` seconds into `stage` (or from its start), and wait for its end."""
    with qpack.started(*BUILD) as running:
        assert running.stderr is not None
        lines: list[str] = []
        for line in running.stderr if stage else ():
            lines.append(line)
            if line.startswith("[") and f"] {stage}:" in line:
                break
        reader = threading.Thread(target=lambda: lines.extend(running.stderr or ()))
        reader.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(after)
        ran = running.poll() is None
        if ran:
            strike(running.pid)
        code = running.wait(600)
        reader.join(PATIENCE)
    return Ended(code, "".join(lines), ran)


def kill(process_id: int) -> None:
    os.kill(process_id, signal.SIGKILL)


def results(qpack: Qpack) -> list[tuple[str, float]]:
    """(stage or part of the evidence, seconds that it took) of everything in the store."""
    files = qpack.home.glob("store/*/*/result.json")
    return [(file.parts[-3], json.loads(file.read_text())["seconds"]) for file in files]


def longest(qpack: Qpack) -> dict[str, float]:
    """Seconds that each stage can have taken: all evidence counts for the baseline and for the artifact."""
    found = {stage.name: 1.0 for stage in STAGES}
    for name, seconds in results(qpack):
        for stage in (name,) if name in found else ("baseline", "artifact"):
            found[stage] += seconds
    return found


@pytest.fixture(scope="module")
def twice(tiny_model: Path, engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Twice:
    """A home in which two builds of the same recipe ran at once, and how they ended."""
    qpack = prepared(tmp_path_factory.mktemp("twice") / "folder", tiny_model, engine_home)
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda _: qpack(*BUILD, timeout=900), range(2)))
    return qpack, ends


def test_two_builds_at_once_make_everything_once(twice: Twice) -> None:
    qpack, ends = twice
    assert [done.code for done in ends] == [0, 0], ends
    assert any("another qpack is" in done.err for done in ends)
    assert [(release["name"], release["version"]) for release in published(qpack)] == [("tiny", "1")]
    # Performance and language once a model; accuracy of the baseline, of the artifact's look, and of its looks as one.
    assert len(qpack.finished()) == len(set(qpack.finished())) + 4
    assert qpack.ended()


def test_a_build_whose_first_look_decides_asks_the_artifact_no_more(twice: Twice) -> None:
    qpack, ends = twice
    release = json.loads(qpack("show", "tiny", "--json").out)["release"]
    asked = {who: len(release[who]["accuracy"]["tasks"][0]["samples"]) for who in ("baseline", "artifact")}
    assert asked == {"baseline": 10, "artifact": 10}  # the release holds what was compared
    looked = release["artifact"]["accuracy"]["look"]
    assert (looked["number"], looked["looks"]) == (1, 4)
    kept = [json.loads(file.read_text())["result"] for file in qpack.home.glob("store/accuracy/*/result.json")]
    assert sorted(len(result["tasks"][0]["samples"]) for result in kept) == [10, 10, 40]
    said = "".join(done.err for done in ends)
    assert "look 1 of 4, 10 items (25 % of those planned)" in said
    assert "look 2 of 4" not in said
    (gate,) = [gate for gate in release["verdict"]["gates"] if gate["gate"] == "accuracy_drop"]
    assert gate["outcome"] == "undecided", "both models only guess"
    assert "Stopped at look 1 of 4" in gate["why"]


def finish(qpack: Qpack, twice: Twice) -> None:
    """The same command again ends well, with the weights of the builds that nothing happened to."""
    done = qpack(*BUILD, timeout=600)
    assert done.code == 0, done.err
    assert weights(qpack) == weights(twice[0])
    assert [(release["name"], release["version"]) for release in published(qpack)] == [("tiny", "1")]
    assert not qpack.half_done()
    assert not list((qpack.home / "store" / "scratch").glob("*"))


def test_a_build_killed_in_every_stage_goes_on_and_makes_the_same_weights(
    twice: Twice, chance: random.Random, tmp_path: Path, tiny_model: Path, engine_home: Path
) -> None:
    killed = prepared(tmp_path / "killed", tiny_model, engine_home)
    for stage, seconds in longest(twice[0]).items():
        after = chance.uniform(0, seconds)
        hit(killed, after, kill, stage)
        assert killed.ended(), f"killed {after:.2f} s after the start of {stage}: processes are left"
    finish(killed, twice)


def test_a_build_killed_at_any_moment_goes_on_and_makes_the_same_weights(
    twice: Twice, chance: random.Random, tmp_path: Path, tiny_model: Path, engine_home: Path
) -> None:
    killed = prepared(tmp_path / "killed", tiny_model, engine_home)
    whole = sum(seconds for _, seconds in results(twice[0]))
    for _ in range(5):
        after = chance.uniform(0, whole / 4)
        hit(killed, after, kill)
        assert killed.ended(), f"killed after {after:.2f} s: processes are left"
    finish(killed, twice)


def test_a_build_interrupted_at_any_moment_says_so_leaves_nothing_and_goes_on(
    twice: Twice, chance: random.Random, tmp_path: Path, tiny_model: Path, engine_home: Path
) -> None:
    stopped = prepared(tmp_path / "stopped", tiny_model, engine_home)
    whole = sum(seconds for _, seconds in results(twice[0]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        after = chance.uniform(0, whole / 3)
        ended = hit(stopped, after, lambda process_id, number=number: os.kill(process_id, number))
        # In its first moments, before it has said or begun anything, the signal itself ends it.
        ends = {130, *((-number,) if not ended.err else ())} if ended.hit else {0}
        assert ended.code in ends, (number, after, ended)
        assert "Traceback" not in ended.err
        assert stopped.ended(), f"{number} after {after:.2f} s: processes are left"
        assert not stopped.half_done(), f"{number} after {after:.2f} s"
    finish(stopped, twice)


def test_a_build_that_loses_any_of_its_processes_ends_with_an_error_of_ours_and_goes_on(
    twice: Twice, chance: random.Random, tmp_path: Path, tiny_model: Path, engine_home: Path
) -> None:
    robbed = prepared(tmp_path / "robbed", tiny_model, engine_home)
    whole = sum(seconds for _, seconds in results(twice[0]))
    lost: list[str] = []

    def kill_one_below(process_id: int) -> None:
        others = [process for process in robbed.processes() if process.pid != process_id]
        if others:
            victim = chance.choice(others)
            with contextlib.suppress(psutil.NoSuchProcess):
                lost.append(" ".join(victim.cmdline()))
                victim.kill()

    for _ in range(4):
        after = chance.uniform(0, whole / 3)
        ended = hit(robbed, after, kill_one_below)
        # 0: there was none, or one that nothing waits for.
        assert ended.code in (0, *(kind.exit_code for kind in OURS)), (lost, ended)
        assert "Traceback" not in ended.err
        assert robbed.ended(), f"{lost} after {after:.2f} s: processes are left"
        assert not robbed.half_done(), f"{lost} after {after:.2f} s"
    finish(robbed, twice)
