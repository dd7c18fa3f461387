"""GPTQModel, AutoGPTQ's maintained successor: GPTQ in the format that servers call gptq."""

from __future__ import annotations

import re
from pathlib import Path

from qpack.core.problems import Problem
from qpack.core.records import Quantized
from qpack.runtime.specs import Spec
from quantize.checkpoint.source import Source
from quantize.engines import adapters
from quantize.engines.protocol import MemoryProfile, Paths, Request
from quantize.engines.workers.engine_answer import Answer
from quantize.engines.workers.gptqmodel_job import Job

_HERE = Path(__file__).parent

NAME = "gptqmodel"
# Without this it starts more workers than two cores can run, and exits.
ENVIRONMENT = Spec(
    "gptqmodel", _HERE / "envs" / "gptqmodel", ("torch", "gptqmodel"), variables={"GPTQMODEL_CPU_WORKERS": "2"}
)
WORKER = _HERE / "workers" / "gptqmodel_worker.py"
FORMATS: tuple[str, ...] = ("gptq",)
MIXED_PRECISION = False
TUNES = False
ROWS_TOGETHER = False
RESUMABLE = False
LAYERWISE = False
KEEPS_UNLOADED = False
MEMORY = MemoryProfile(libraries=568 * 2**20)
SUPPORTED = frozenset({("gptq", "W4A16"), ("gptq", "W8A16")})


def check(request: Request, source: Source) -> list[Problem]:
    """A model that ships its own code needs the recipe's permission."""
    return [*adapters.own_code(request, source), *adapters.one_scheme("GPTQModel", request)]


def job(request: Request, paths: Paths) -> Job:
    """The worker's job. `skip` has regular expressions that match a layer's full name."""
    return Job(
        checkpoint=str(paths.checkpoint),
        tokens=paths.rows,
        bits=8 if request.scheme.startswith("W8") else 4,
        group_size=request.group_size or -1,
        skip=tuple(_expression(pattern) for pattern in request.ignore if pattern != "lm_head"),
        damping=request.damping,
        trust_remote_code=request.trust_remote_code,
    )


def _expression(pattern: str) -> str:
    """An ignore pattern for GPTQModel, which matches from the start of the name."""
    return pattern[3:] if pattern.startswith("re:") else rf"(.*\.)?{re.escape(pattern)}$"


def read(request: Request, out: Path, answer: Answer) -> Quantized:
    """The artifact's record."""
    return adapters.record(NAME, request, out, answer)
