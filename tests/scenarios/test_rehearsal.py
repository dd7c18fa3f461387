"""`qpack check --rehearse`: every engine on a part of a model, in its own environment, for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantize.engines import gram
from quantize.engines.catalog import ENGINES
from tests.scenarios.command import Qpack
from tests.scenarios.conftest import lay_out
from tests.scenarios.test_out_of_memory import RECIPE, interpreter
from tests.unit import damage

pytestmark = [pytest.mark.engines, pytest.mark.slow("every engine on a part of a model")]

ASKED = {
    "llmcompressor": ("gptq", "W4A16"),
    "gram": ("awq+gptq", "W4A16_ASYM"),
    "gptqmodel": ("gptq", "W4A16"),
    "autoawq": ("awq", "W4A16_ASYM"),
    "autoround": ("autoround", "W4A16"),
    "modelopt": ("rtn", "FP8_DYNAMIC"),
}


@pytest.fixture(scope="module")
def four_layers(tiny_model: Path, engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Qpack:
    """The tiny model with its two layers twice, and rows of which a rehearsal takes the longest."""
    folder = tmp_path_factory.mktemp("rehearsed") / "folder"
    qpack = lay_out(folder, tiny_model, engine_home)

    def twice(found: damage.Raw) -> None:
        for name, tensor in list(found.items()):
            for number in (0, 1):
                if f".layers.{number}." in name:
                    found[name.replace(f".layers.{number}.", f".layers.{number + 2}.")] = tensor

    damage.tensors(folder / "model", twice)
    damage.config(folder / "model", lambda found: found.update(num_hidden_layers=4))
    lines = (f"{number} {'is the number of this line. ' * (3 + number % 20)}\n" for number in range(200))
    (folder / "texts.txt").write_text("".join(lines))
    (folder / "recipe.yaml").write_text(RECIPE)
    return qpack


def asked(engine: str) -> list[str]:
    method, scheme = ASKED[engine]
    width = "null" if engine == "modelopt" else "32"
    settings = (f"engine={engine}", f"method={method}", f"scheme={scheme}", f"group_size={width}")
    return [part for setting in settings for part in ("--set", f"quantize.{setting}")]


@pytest.mark.parametrize("engine", ASKED)
def test_an_engine_is_rehearsed_on_the_largest_layer_and_the_longest_rows(engine: str, four_layers: Qpack) -> None:
    # A copy changes nothing that could run out of memory, and AutoGPTQ is archived.
    assert set(ASKED) == set(ENGINES) - {"copy", "autogptq"}
    done = four_layers("check", "recipe.yaml", "--rehearse", "--json", *asked(engine), timeout=600)
    assert done.code == 0, done
    found = json.loads(done.out)["rehearsal"]
    assert (found["engine"], found["layers"], found["of_layers"], found["of_rows"]) == (engine, 2, 4, 64)
    # AutoAWQ puts all rows through a layer at once, so fewer would say nothing.
    assert found["rows"] == 64 if engine == "autoawq" else 8 < found["rows"] < 64
    assert found["place"] == "host"
    assert 2**27 < found["peak_bytes"] < found["have_bytes"]
    assert found["expected_bytes"] > found["peak_bytes"]
    assert four_layers.finished() == ["calibrate", "fetch", "hold_out"]
    assert not list((four_layers.home / "store" / "scratch").iterdir())
    assert four_layers.ended()


def test_memory_that_runs_out_does_so_in_the_rehearsal_and_names_the_keys(
    four_layers: Qpack, tmp_path: Path, engine_home: Path
) -> None:
    own = interpreter(tmp_path, gram, engine_home, "layers", -256)
    done = four_layers("check", "recipe.yaml", "--rehearse", *asked("gram"), QPACK_ENV_GRAM=str(own), timeout=900)
    assert (done.code, done.out) == (4, ""), done
    assert "ran out of host memory" in done.err
    assert "note[less-memory] recipe.yaml:6: calibration.samples: 64 rows" in done.err
    assert four_layers.finished() == ["calibrate", "fetch", "hold_out"]
    assert not list((four_layers.home / "store" / "scratch").iterdir())
