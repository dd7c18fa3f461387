"""Layers for multi-token prediction that vLLM names otherwise than the checkpoint: an artifact's are loaded too."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from evals.server.eval_environments import VLLM
from qpack.runtime import environments
from quantize.engines import llmcompressor
from tests.contract.conftest import TINY_MODELS
from tests.scenarios.command import Qpack
from tests.scenarios.conftest import MEASURED

pytestmark = [pytest.mark.engines, pytest.mark.slow("a model that drafts with a layer of its own, in vLLM")]

HERE = Path(__file__).parent
EAGER = "    enforce-eager: true\n"
DRAFTING = EAGER + "    speculative-config: {method: mtp, num_speculative_tokens: 1}\n"
SERVED = MEASURED.replace(EAGER, DRAFTING)
RECIPE = f"""\
name: tiny-mimo
model:
  source: mimo
  trust_remote_code: true
quantize:
  engine: gram
  method: rtn
  scheme: W8A8
evaluate:
{SERVED}"""


def test_drafts_of_a_quantized_mimo_are_accepted(smollm2: Path, engine_home: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "envs").symlink_to(engine_home / "envs")
    qpack = Qpack(tmp_path / "home", tmp_path, {})
    python = environments.ensure(
        environments.resolve(llmcompressor.ENVIRONMENT, "cpu", engine_home), engine_home, print
    )
    set_up = {**os.environ, **python.variables}
    command = [python.python, TINY_MODELS, tmp_path, "--tokenizer", smollm2, "--only", "qwen2"]
    subprocess.run(command, env=set_up, check=True, capture_output=True, timeout=300)
    subprocess.run(
        [python.python, HERE / "tiny_mimo.py", tmp_path / "qwen2", tmp_path / "mimo"],
        env=set_up,
        check=True,
        timeout=60,
    )
    lines = [f"The {n} boats of harbour {n} sail at {n} and come back before the tide turns.\n" for n in range(40)]
    (tmp_path / "held-out.txt").write_text("".join(lines))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = qpack("build", "recipe.yaml", "--until", "quantize", timeout=300)
    assert done.code == 0, done.err
    (made,) = (tmp_path / "home" / "store" / "quantize").glob("*/checkpoint")
    vllm = environments.ensure(environments.resolve(VLLM, "cpu", engine_home), engine_home, print)
    subprocess.run(
        [vllm.python, HERE / "drafts_accepted.py", made, tmp_path / "counted.json"],
        env={**os.environ, **vllm.variables, "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    drafted, accepted = json.loads((tmp_path / "counted.json").read_text())
    assert drafted > 20
    assert accepted > 0.9 * drafted
