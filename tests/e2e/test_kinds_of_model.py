"""A mixture of experts, a hybrid and a model with latent attention, each quantized, measured and released whole.

What vLLM's build for this CPU has no kernel for is judged by its 16-bit twin. A vision model is in test_vision.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import tiny_builds
from tests.e2e.tiny_builds import checks
from tests.scenarios.command import Qpack
from tests.scenarios.conftest import MEASURED

pytestmark = [pytest.mark.engines, pytest.mark.slow("whole builds of three more kinds of model")]


@dataclass(frozen=True)
class Kind:
    """A tiny model, how it is quantized, and whether its artifact is judged by its twin."""

    model: str
    quantize: str
    emulated: bool


FOUR_BITS = "llmcompressor\n  method: rtn\n  scheme: W4A16\n  group_size: 64"
KINDS = {
    "experts in one tensor": Kind("granitemoe", FOUR_BITS, emulated=True),
    "latent attention": Kind("deepseek_v3", FOUR_BITS, emulated=True),
    "hybrid": Kind("falcon_h1", "gram\n  method: rtn\n  scheme: W8A8", emulated=False),
}
RECIPE = """\
name: {name}
model:
  source: {model}
quantize:
  engine: {quantize}
evaluate:
{judged}"""


@pytest.fixture(scope="module")
def qpack(smollm2: Path, engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Qpack:
    return tiny_builds.workspace(
        tmp_path_factory.mktemp("kinds"), ",".join(kind.model for kind in KINDS.values()), smollm2, engine_home
    )


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_is_released_with_a_canary_that_passes(qpack: Qpack, kind: Kind) -> None:
    name, recipe = f"tiny-{kind.model.replace('_', '-')}", qpack.cwd / f"{kind.model}.yaml"
    judged = ("  emulate: when-needed\n" if kind.emulated else "") + MEASURED
    recipe.write_text(RECIPE.format(name=name, model=kind.model, quantize=kind.quantize, judged=judged))
    done = qpack("build", recipe, "--allow-failed-gates", timeout=900)
    assert done.code == 0, done.err
    shown = json.loads(qpack("show", f"{name}:1", "--json").out)
    assert shown["release"]["quantized"]["quantized_layers"] > 4
    assert bool(shown["release"]["artifact"]["emulated"]) == kind.emulated
    found = checks(shown)
    assert len(found) > 5
    assert [check for check in found if check["outcome"] == "fail"] == []
    assert qpack("verify", f"{name}:1").code == 0
