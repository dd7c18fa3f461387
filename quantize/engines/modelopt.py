"""Model-Optimizer (NVIDIA): rounding to nearest with calibrated ranges, in the format that servers call modelopt."""

from __future__ import annotations

from pathlib import Path

from qpack.core.problems import Problem
from qpack.core.records import Quantized
from qpack.runtime.specs import Spec
from quantize.checkpoint.source import Source
from quantize.engines import adapters
from quantize.engines.protocol import MemoryProfile, Paths, Request
from quantize.engines.workers.engine_answer import Answer
from quantize.engines.workers.modelopt_job import Job
from quantize.schemes.schemes import FORMATS as SCHEMES_OF
from quantize.schemes.schemes import SCHEMES

_HERE = Path(__file__).parent

NAME = "modelopt"
ENVIRONMENT = Spec("modelopt", _HERE / "envs" / "modelopt", ("torch", "modelopt.torch.quantization"))
WORKER = _HERE / "workers" / "modelopt_worker.py"
# transformers' release in its locks.
_TRANSFORMERS = (5, 14)
FORMATS: tuple[str, ...] = ("modelopt",)
MIXED_PRECISION = False
TUNES = False
ROWS_TOGETHER = False
RESUMABLE = False
LAYERWISE = False
KEEPS_UNLOADED = False
MEMORY = MemoryProfile(logits=True, packed=True)
_PRESETS = {
    "FP8": "FP8_DEFAULT_CFG",
    "FP8_DYNAMIC": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "NVFP4": "NVFP4_DEFAULT_CFG",
    "NVFP4A16": "W4A16_NVFP4_CFG",
    "MXFP8": "MXFP8_DEFAULT_CFG",
}
"""Model-Optimizer's presets of the schemes whose checkpoints vLLM reads (`LINEAR_ALGOS` in its modelopt.py)."""
SUPPORTED = frozenset(("rtn", name) for name in SCHEMES_OF["modelopt"])


def check(request: Request, source: Source) -> list[Problem]:
    """It loads every model that transformers knows; one that ships its own code needs the recipe's permission."""
    problems = [*adapters.own_code(request, source), *adapters.one_scheme("Model-Optimizer", request)]
    return [*problems, *adapters.new_layer_types("Model-Optimizer", _TRANSFORMERS, source)]


def job(request: Request, paths: Paths) -> Job:
    """The worker's job: rows are read where activations get static scales."""
    calibrated = SCHEMES[request.scheme].calibrated
    return Job(
        checkpoint=str(paths.checkpoint),
        tokens=paths.rows if calibrated else None,
        config=_PRESETS[request.scheme],
        ignore=request.ignore,
        trust_remote_code=request.trust_remote_code,
    )


def read(request: Request, out: Path, answer: Answer) -> Quantized:
    """The artifact's record."""
    return adapters.record(NAME, request, out, answer)
