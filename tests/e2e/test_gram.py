"""A build by gram: what it leaves, and that others read it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from qpack.core.console import open_console
from qpack.core.store import Store
from qpack.pipeline import plan
from qpack.pipeline.context import Context
from qpack.pipeline.run import run
from qpack.pipeline.stages import quantize
from qpack.pipeline.stages.catalog import until
from qpack.pipeline.state import Build
from qpack.recipe import recipe_file
from qpack.runtime import environments
from quantize.engines import llmcompressor
from tests.scenarios.command import Qpack
from tests.scenarios.conftest import REAL, SCHEME, lay_out

pytestmark = [pytest.mark.engines, pytest.mark.slow("a whole build by gram, read by other programs")]

RECIPE = REAL.replace(
    f"method: rtn\n  scheme: {SCHEME}", "engine: gram\n  method: awq+gptq\n  scheme: W4A16_ASYM\n  group_size: 32"
)
CALIBRATION = "calibration:\n  source: calibration.txt\n  samples: 8\n  max_length: 64\nquantize:\n"


@pytest.fixture(scope="module", params=[0, 4], ids=["untuned", "tuned"])
def built(
    request: pytest.FixtureRequest, tiny_model: Path, engine_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Qpack:
    """A home in which gram quantized the tiny model; its server was never started."""
    iterations = f"  iterations: {request.param}\n"
    qpack = lay_out(tmp_path_factory.mktemp("gram") / "folder", tiny_model, engine_home)
    texts = [f"Text {i} says that {'number ' * i} comes after {'word ' * (30 + i)}\n" for i in range(12)]
    (qpack.cwd / "calibration.txt").write_text("".join(texts))
    (qpack.cwd / "recipe.yaml").write_text(RECIPE.replace("quantize:\n", CALIBRATION + iterations))
    store = Store(qpack.home)
    planned = plan.make(recipe_file.load(qpack.cwd / "recipe.yaml"), store, thorough=True)
    with open_console() as console:
        begun = Build(planned, Context(store, qpack.home / "registry", console))
        run(begun, until(quantize.STAGE))
    return qpack


def checkpoint_of(qpack: Qpack) -> Path:
    (folder,) = (qpack.home / "store" / "quantize").glob("*/checkpoint")
    return folder


def test_a_build_by_gram_leaves_no_scratch(built: Qpack) -> None:
    assert built.finished() == ["calibrate", "fetch", "hold_out", "quantize"]
    assert not list((built.home / "store" / "scratch").glob("*"))


def test_the_report_has_a_line_for_each_input_and_errors_that_fell(built: Qpack) -> None:
    report = json.loads((checkpoint_of(built) / "gram_report.json").read_text())
    sites = report["sites"]
    assert [site["site"] for site in sites] == ["qkv", "o", "gate_up", "down"] * 2
    (kept,) = (built.home / "store" / "quantize").glob("*/result.json")
    recorded = json.loads(kept.read_text())["result"]
    assert [site["error_after"] for site in recorded["sites"]] == [site["error_after"] for site in sites]
    # 4 bits, and for each 32 of them 16 of a scale and 4 of a zero point.
    assert recorded["bits_per_weight"] == 4 + 20 / 32
    assert sum(site["error_after"] for site in sites) < sum(site["error_before"] for site in sites)


def test_the_report_says_what_tuning_brought_where_the_recipe_asks_for_it(built: Qpack) -> None:
    sites = json.loads((checkpoint_of(built) / "gram_report.json").read_text())["sites"]
    if "iterations: 0" in (built.cwd / "recipe.yaml").read_text():
        assert not any("tuned_error" in site for site in sites)
        return
    assert all(site["tuned_error"] <= site["untuned_error"] for site in sites)
    assert all(site["kept_step"] in (0, 2, 4) for site in sites)


def test_compressed_tensors_reads_the_weights_that_gram_wrote(built: Qpack, engine_home: Path) -> None:
    environment = environments.ensure(
        environments.resolve(llmcompressor.ENVIRONMENT, "cpu", engine_home), engine_home, print
    )
    done = subprocess.run(
        [environment.python, Path(__file__).parent / "gram_reads.py", checkpoint_of(built)],
        env={**os.environ, **environment.variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [14, 0.0]
