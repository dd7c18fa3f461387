"""A vision model quantized, measured and released; its canary sends a picture to a real vLLM."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from evals.server.eval_environments import VLLM
from evals.tasks import picture_items
from qpack.runtime import environments
from tests.e2e import tiny_builds
from tests.e2e.tiny_builds import checks
from tests.scenarios.command import Qpack
from tests.scenarios.conftest import MEASURED
from tests.unit.test_pictures import seen

pytestmark = [pytest.mark.engines, pytest.mark.slow("a vision model's whole build, and a picture in its canary")]

MODEL = "qwen2_5_vl"
# The release for the lock's torch.
TORCHVISION = "torchvision==0.28.0"
OPERATORS = """\
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms", "qroi_align", "deform_conv2d", "_deform_conv2d_backward", "box_iou_rotated"):
    library.define(f"{name}(Tensor x) -> Tensor")
for name in ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool"):
    library.define(f"{name}(Tensor x) -> Tensor")
    library.define(f"_{name}_backward(Tensor x) -> Tensor")
"""
# Questions about pictures need more room than the tiny models' other tests.
ASKED = MEASURED.replace("  perplexity:", "    - task: suite:vision\n      samples: 8\n  perplexity:", 1).replace(
    "max_model_len: 512", "max_model_len: 1024"
)
RECIPE = f"""\
name: tiny-vision
model:
  source: {{model}}
quantize:
  engine: llmcompressor
  method: rtn
  scheme: W8A8
evaluate:
{ASKED}environments:
  vllm: {{python}}
"""


@pytest.fixture(scope="module")
def sees(engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with vLLM and torchvision, which the lock for CPUs lacks: the index has a build for CUDA alone.
    Its Python code prepares pictures; of its compiled operators, which that code doesn't call, the names are declared.
    """
    folder = tmp_path_factory.mktemp("vision") / "environment"
    vllm = environments.ensure(environments.resolve(VLLM, "cpu", engine_home), engine_home, print)
    subprocess.run([vllm.python, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (theirs,) = vllm.python.parent.parent.glob("lib/python*/site-packages")
    (packages / "vllm.pth").write_text(f"{theirs}\n")
    version = packages.parent.name.removeprefix("python")
    wanted = ["--no-deps", "--only-binary", ":all:", "--python-version", version, "--target", packages, TORCHVISION]
    subprocess.run([environments.uv_path(), "pip", "install", "--quiet", *wanted], check=True)
    for compiled in (packages / "torchvision").glob("*.so"):
        compiled.unlink()
    (packages / "torchvision_operators.py").write_text(OPERATORS)
    registered = packages / "torchvision" / "_meta_registrations.py"
    registered.write_text(f"import torchvision_operators\n{registered.read_text()}")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def qpack(smollm2: Path, engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Qpack:
    return tiny_builds.workspace(tmp_path_factory.mktemp("vision-build"), MODEL, smollm2, engine_home)


def test_a_vision_model_is_released_after_a_picture_was_read(qpack: Qpack, sees: Path) -> None:
    recipe = qpack.cwd / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=qpack.cwd / MODEL, python=sees))
    done = qpack("build", recipe, "--allow-failed-gates", timeout=900)
    assert done.code == 0, done.err
    shown = qpack("show", "tiny-vision:1", "--json")
    (found,) = [each for each in checks(json.loads(shown.out)) if each["name"] == "picture"]
    assert found["outcome"] == "pass", found


def test_the_suite_of_pictures_was_asked_and_judged_by_what_is_in_the_pictures(qpack: Qpack) -> None:
    """The right word of each item is read from its pixels; a model of random weights names none, or one by chance."""
    (judged,) = (qpack.home / "store" / "judge").glob("*/result.json")
    stated = json.loads(judged.read_text())
    documents = picture_items.pictures()
    for side in ("baseline", "artifact"):
        folder = qpack.home / "store" / "accuracy" / stated["inputs"]["after"][f"{side}.accuracy"]
        lines = (folder / "lm-eval" / "answers.jsonl").read_text().splitlines()
        answers = [a for a in map(json.loads, lines) if a["item"].startswith("qpack_pictures:")]
        assert len(answers) == 8
        scores = []
        for answer in answers:
            document = documents[int(answer["item"].split(":")[1])]
            assert document["prompt"] in answer["prompt"]
            right = seen(document["picture"], document["prompt"])
            words = set(re.sub("[^a-z]", " ", answer["text"].lower()).split())
            others = set(json.loads(document["check"])["words"]) - {right}
            scores.append(float(right in words and not words & others))
        assert scores == [answer["score"] for answer in answers]
        (task,) = [t for t in stated["result"]["comparison"]["tasks"] if t["task"] == "qpack_pictures"]
        assert task[side] == pytest.approx(sum(scores) / 8)


def test_a_template_without_a_placeholder_is_told_before_a_build(qpack: Qpack, sees: Path) -> None:
    model = qpack.cwd / MODEL
    template = (model / "chat_template.jinja").read_text()
    assert "<|image_pad|>" in template
    blind = qpack.cwd / "blind"
    blind.mkdir()
    for file in model.iterdir():
        (blind / file.name).hardlink_to(file)
    (blind / "chat_template.jinja").unlink()
    (blind / "chat_template.jinja").write_text(
        template.replace("<|vision_start|><|image_pad|><|vision_end|>", "PICTURE")
    )
    recipe = qpack.cwd / "blind.yaml"
    recipe.write_text(RECIPE.format(model=blind, python=sees))
    done = qpack("check", recipe)
    assert done.code == 0, done.err
    assert "unplaced-pictures" in done.out + done.err
    examined = json.loads(qpack("doctor", blind, "--json").out)
    assert "unplaced-pictures" in [finding["code"] for finding in examined["findings"]]
