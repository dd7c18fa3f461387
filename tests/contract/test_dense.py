"""Experts in MXFP4 are unpacked to what transformers unpacks them to."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from qpack.runtime import environments
from quantize.checkpoint.reader_environment import TRANSFORMERS
from quantize.doctor import checkpoint
from quantize.emulate import dense

pytestmark = pytest.mark.engines


def test_experts_in_mxfp4_are_what_transformers_reads(
    architectures: list[Path], engine_home: Path, tmp_path: Path
) -> None:
    (model,) = [folder for folder in architectures if folder.name == "gpt_oss"]
    reader = environments.ensure(environments.resolve(TRANSFORMERS, "cpu", engine_home), engine_home, print)

    def run(script: str, *arguments: Path) -> str:
        call = [reader.python, Path(__file__).with_name(script), *arguments]
        variables = {**os.environ, **reader.variables, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(list(map(str, call)), env=variables, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    run("pack_mxfp4.py", model, tmp_path / "packed")
    found, problems = checkpoint.read(tmp_path / "packed", sample=0)
    assert problems == []
    assert dense.write(found, dense.claims_of(found), tmp_path / "dense", lambda *_: None) == 4
    differ = json.loads(run("unpacked_mxfp4.py", tmp_path / "packed", tmp_path / "dense").splitlines()[-1])
    assert differ == {"compared": 4, "differ": []}
