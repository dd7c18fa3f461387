"""Engines that really run out of memory: what is said, which keys it names, and where the next build begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qpack.runtime import environments
from quantize.engines import llmcompressor
from quantize.engines.protocol import Engine
from tests.scenarios.command import Qpack
from tests.scenarios.conftest import REAL, lay_out

pytestmark = [pytest.mark.engines, pytest.mark.slow("engines that really run out of memory")]

LIMITED = Path(__file__).parent / "limited.py"
RECIPE = REAL.replace("method: rtn", "method: gptq").replace(
    "quantize:\n", "calibration:\n  source: texts.txt\n  samples: 64\n  max_length: 512\nquantize:\n"
)


def interpreter(folder: Path, engine: Engine, engine_home: Path, when: str, mib: int) -> Path:
    """The engine's own interpreter, in which its worker gets so much more memory from a step on."""
    environment = environments.ensure(environments.resolve(engine.ENVIRONMENT, "cpu", engine_home), engine_home, print)
    path = folder / f"python-{engine.NAME}"
    # A worker is a script that workerlib/run_script.py runs; what isn't one is run as it is.
    path.write_text(
        f"""#!/bin/sh
case "$*" in
  *run_script.py*)
    while test "${{1##*/}}" != run_script.py; do shift; done
    library=${{1%/*}}
    shift
    PYTHONPATH="$library" exec {environment.python} {LIMITED} {when} {mib} "$@" ;;
  *) exec {environment.python} "$@" ;;
esac
"""
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def rows(tmp_path: Path, tiny_model: Path, engine_home: Path) -> Qpack:
    qpack = lay_out(tmp_path, tiny_model, engine_home)
    words = ("Every line of this file is another one, and is long enough for a row. " * 50 for _ in range(80))
    (tmp_path / "texts.txt").write_text("".join(f"{number} {line}\n" for number, line in enumerate(words)))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return qpack


def test_an_engine_that_runs_out_of_memory_names_the_keys_to_turn(
    rows: Qpack, tmp_path: Path, engine_home: Path
) -> None:
    own = interpreter(tmp_path, llmcompressor, engine_home, "layers", 0)
    done = rows("build", "recipe.yaml", QPACK_ENV_LLMCOMPRESSOR=str(own), timeout=900)
    assert done.code == 4, done
    assert "quantize: llmcompressor_worker ran out of host memory: " in done.err
    assert "RLIMIT_AS" in done.err
    lines = RECIPE.splitlines()
    for key, hint in (("samples", "Fewer take less: 32."), ("max_length", "Shorter ones take less: 256.")):
        (line,) = [number for number, text in enumerate(lines, 1) if text.startswith(f"  {key}: ") and number < 10]
        assert f"note[less-memory] recipe.yaml:{line}: calibration.{key}: " in done.err, done.err
        assert hint in done.err
    assert "quantize.engine: llmcompressor holds all layers in memory." in done.err
    assert "llmcompressor keeps no finished layers" in done.err
    assert rows.finished() == ["calibrate", "fetch", "hold_out"]
    assert rows.ended()


def test_a_plan_says_whether_an_engine_goes_on_from_finished_layers(rows: Qpack) -> None:
    said = {}
    for engine in ("llmcompressor", "gptqmodel", "gram"):
        four = ("--set", "quantize.scheme=W4A16", "--set", "quantize.group_size=32")
        settings = (*four, "--set", f"quantize.engine={engine}")
        said[engine] = json.loads(rows("plan", "recipe.yaml", *settings, "--json").out)["resumable"]
    assert said == {"llmcompressor": False, "gptqmodel": False, "gram": True}
    assert "gram keeps finished layers; quantization resumes" in rows("plan", "recipe.yaml", *settings).out
