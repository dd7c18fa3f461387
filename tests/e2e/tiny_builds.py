"""Whole builds of tiny models of several architectures, and what their canaries say."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from qpack.runtime import environments
from quantize.engines import llmcompressor
from tests.contract.conftest import TINY_MODELS
from tests.scenarios.command import Qpack


def workspace(folder: Path, models: str, tokenizer: Path, engine_home: Path) -> Qpack:
    """A folder with tiny checkpoints (names of tiny_models.py, with commas), held-out text, and a home."""
    (folder / "home").mkdir()
    (folder / "home" / "envs").symlink_to(engine_home / "envs")
    spec = environments.resolve(llmcompressor.ENVIRONMENT, "cpu", engine_home)
    python = environments.ensure(spec, engine_home, print)
    command = [python.python, TINY_MODELS, folder, "--tokenizer", tokenizer, "--only", models]
    subprocess.run(command, env={**os.environ, **python.variables}, check=True, capture_output=True, timeout=300)
    lines = [f"The {n} boats of harbour {n} sail at {n} and come back before the tide turns.\n" for n in range(40)]
    (folder / "held-out.txt").write_text("".join(lines))
    return Qpack(folder / "home", folder, {})


def checks(shown: object) -> list[dict[str, str]]:
    """Every check of the canary in a release, wherever `qpack show --json` has them."""
    if isinstance(shown, dict):
        own = [shown] if {"claim", "outcome", "why"} <= shown.keys() else []
        return own + [each for value in shown.values() for each in checks(value)]
    return [each for value in shown for each in checks(value)] if isinstance(shown, list) else []
