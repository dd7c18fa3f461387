"""The tiny model in every scheme, made by the real llm-compressor."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from qpack.runtime import environments
from qpack.runtime.environments import Environment
from qpack.runtime.workerlib import qpack_protocol
from quantize.engines import llmcompressor
from quantize.engines.protocol import Override, Paths, Request
from tests.scenarios.command import ROOT

DRIVER = Path(__file__).parent / "quantize_tiny.py"
ASK = functools.partial(Request, ignore=("lm_head",), damping=0.01, trust_remote_code=False)
WAYS = {
    "w4a16": ASK("rtn", "W4A16", 32),
    "w4a16-asym": ASK("rtn", "W4A16_ASYM", 32),
    "w8a16": ASK("rtn", "W8A16", 32),
    "w8a8": ASK("rtn", "W8A8", None),
    "fp8-dynamic": ASK("rtn", "FP8_DYNAMIC", None),
    "fp8": ASK("rtn", "FP8", None),
    "fp8-block": ASK("rtn", "FP8_BLOCK", None),
    "awq+gptq": ASK("awq+gptq", "W4A16_ASYM", 32),
    "mixed": ASK("rtn", "W4A16", 32, overrides=(Override("re:.*down_proj", "FP8_DYNAMIC", None),)),
    "fp8-cache": ASK("rtn", "FP8", None, kv_cache="fp8"),
    "nvfp4": ASK("rtn", "NVFP4", None),
    "nvfp4-gptq": ASK("gptq", "NVFP4", None),
    "nvfp4a16": ASK("rtn", "NVFP4A16", None),
    "nvfp4a16-awq": ASK("awq", "NVFP4A16", None),
    "mxfp4": ASK("rtn", "MXFP4", None),
    "mxfp4a16-gptq": ASK("awq+gptq", "MXFP4A16", None),
    "mxfp8": ASK("rtn", "MXFP8", None),
    "w4afp8": ASK("rtn", "W4AFP8", 32),
    "w4a8": ASK("smoothquant", "W4A8", 32),
    "nvfp4-and-fp8": ASK("rtn", "NVFP4", None, overrides=(Override("re:.*self_attn.*", "FP8_DYNAMIC", None),)),
}


@pytest.fixture(scope="session")
def compressor(engine_home: Path) -> Environment:
    """llm-compressor's environment."""
    return environments.ensure(environments.resolve(llmcompressor.ENVIRONMENT, "cpu", engine_home), engine_home, print)


@pytest.fixture(scope="session")
def artifacts(tiny_model: Path, engine_home: Path, compressor: Environment) -> Path:
    """The tiny model in every scheme, made once by the real worker in one process, and kept beside it."""
    environment = compressor
    worker = llmcompressor.WORKER
    seen = worker.read_bytes() + DRIVER.read_bytes() + str(WAYS).encode() + tiny_model.name.encode()
    name = hashlib.sha256(seen + environment.digest.encode()).hexdigest()[:12]
    folder = engine_home / "models" / f"quantized-{name}"
    if not folder.exists():
        part = folder.with_suffix(f".{os.getpid()}.part")
        part.mkdir(parents=True)
        rows = [{"input_ids": [(37 * i + 11 * j) % 4000 + 10 for j in range(32)]} for i in range(4)]
        (part / "tokens.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        jobs = [_job(part, tiny_model, way) for way in WAYS]
        done = subprocess.run(
            [environment.python, DRIVER, worker.parent, *jobs],
            env={**os.environ, **environment.variables, "PYTHONPATH": str(ROOT / "qpack" / "runtime" / "workerlib")},
            cwd=part,
            capture_output=True,
            check=True,
        )
        (part / "told.txt").write_bytes(done.stdout)
        part.rename(folder)
    return folder


def _job(folder: Path, model: Path, way: str) -> Path:
    # As a build asks: the adapter leaves the rows out where nothing is calibrated.
    job = llmcompressor.job(WAYS[way], Paths(model, folder / "tokens.jsonl", folder / "scratch"))
    path = folder / f"{way}.json"
    qpack_protocol.write_order(path, str(folder / way), job)
    return path
