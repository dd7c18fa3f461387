"""AutoRound (Intel): rounding and ranges tuned by signed gradients, block by block (arXiv:2309.05516)."""

from __future__ import annotations

from pathlib import Path

from qpack.core.problems import Problem
from qpack.core.records import Quantized
from qpack.runtime.specs import Spec
from quantize.checkpoint.source import Source
from quantize.engines import adapters
from quantize.engines.protocol import MemoryProfile, Paths, Request
from quantize.engines.workers.autoround_job import Job
from quantize.engines.workers.engine_answer import Answer
from quantize.schemes.schemes import SCHEMES

_HERE = Path(__file__).parent

NAME = "autoround"
ENVIRONMENT = Spec("autoround", _HERE / "envs" / "autoround", ("torch", "auto_round"))
WORKER = _HERE / "workers" / "autoround_worker.py"
# transformers' release in its locks.
_TRANSFORMERS = (5, 17)
FORMATS: tuple[str, ...] = ("compressed-tensors",)
MIXED_PRECISION = False
TUNES = True
ROWS_TOGETHER = False
RESUMABLE = False
LAYERWISE = False
KEEPS_UNLOADED = False
MEMORY = MemoryProfile(packed=True)
_THEIRS = {"W4A16": "W4A16", "W8A16": "W8A16", "NVFP4": "NVFP4", "MXFP4": "MXFP4", "MXFP8": "MXFP8"}
"""Schemes by AutoRound's names."""
SUPPORTED = frozenset(("autoround", name) for name in _THEIRS)
_ITERATIONS = 200
"""AutoRound's own number of steps per block, where the recipe sets none."""


def check(request: Request, source: Source) -> list[Problem]:
    """It loads every model that transformers knows; one that ships its own code needs the recipe's permission."""
    problems = [*adapters.own_code(request, source), *adapters.one_scheme("AutoRound", request)]
    return [*problems, *adapters.new_layer_types("AutoRound", _TRANSFORMERS, source)]


def job(request: Request, paths: Paths) -> Job:
    """The worker's job."""
    grouped = SCHEMES[request.scheme].grouped
    return Job(
        checkpoint=str(paths.checkpoint),
        tokens=paths.rows,
        scheme=_THEIRS[request.scheme],
        group_size=(request.group_size or -1) if grouped else None,
        symmetric=True,
        format="llm_compressor",
        iterations=request.iterations or _ITERATIONS,
        ignore=request.ignore,
        trust_remote_code=request.trust_remote_code,
    )


def read(request: Request, out: Path, answer: Answer) -> Quantized:
    """The artifact's record."""
    return adapters.record(NAME, request, out, answer)
