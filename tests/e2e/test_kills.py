"""Builds that are killed, and builds at once: real engines on a very small real model."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qpack.pipeline.stages.catalog import STAGES
from tests.scenarios.command import Finished, Qpack
from tests.scenarios.conftest import REAL, lay_out

pytestmark = [pytest.mark.engines, pytest.mark.slow("builds that are killed in any stage, and two builds at once")]
Twice = tuple[Qpack, list[Finished]]

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


def kill_in(qpack: Qpack, stage: str, after: float) -> str:
    """Start a build, kill it `after` seconds into `stage`, and return what it said until then."""
    with qpack.started(*BUILD) as running:
        assert running.stderr is not None
        lines: list[str] = []
        for line in running.stderr:
            lines.append(line)
            if line.startswith("[") and f"] {stage}:" in line:
                break
        reader = threading.Thread(target=lambda: lines.extend(running.stderr or ()))
        reader.start()
        time.sleep(after)
        os.kill(running.pid, signal.SIGKILL)
        running.wait(30)
        reader.join(30)
    return "".join(lines)


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


def test_a_build_killed_in_every_stage_goes_on_and_makes_the_same_weights(
    twice: Twice, tmp_path: Path, tiny_model: Path, engine_home: Path
) -> None:
    killed = prepared(tmp_path / "killed", tiny_model, engine_home)
    seconds = {"fetch": 0.0, "hold_out": 1.0, "calibrate": 1.0, "quantize": 6.0, "baseline": 12.0, "artifact": 30.0}
    for stage in STAGES:
        name = stage.name
        kill_in(killed, name, seconds.get(name, 0.0))
        assert killed.ended(), f"killed in {name}: processes are left"
    done = killed(*BUILD, timeout=600)
    assert done.code == 0, done.err
    assert weights(killed) == weights(twice[0])
    assert [(release["name"], release["version"]) for release in published(killed)] == [("tiny", "1")]
    assert not killed.half_done()
