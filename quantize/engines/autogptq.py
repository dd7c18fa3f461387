"""AutoGPTQ 0.7.1, the last release of an archived project: GPTQ in the format that servers call gptq.

It was made for GPUs and an old transformers. The worker runs it on a CPU, with the config for transformers 4; the
artifact's config has the keys of both versions (`config_compat`). GPTQModel is its maintained successor.
"""

from __future__ import annotations

from pathlib import Path

from qpack.core.problems import Location, Problem
from qpack.core.records import Quantized
from qpack.runtime.specs import Spec
from quantize.checkpoint import config_compat
from quantize.checkpoint.source import Source
from quantize.engines import adapters
from quantize.engines.adapters import UNSUPPORTED_PATTERN
from quantize.engines.protocol import MemoryProfile, Paths, Request
from quantize.engines.workers.autogptq_job import Job
from quantize.engines.workers.engine_answer import Answer

_HERE = Path(__file__).parent

NAME = "autogptq"
ENVIRONMENT = Spec("autogptq", _HERE / "envs" / "autogptq", ("torch", "auto_gptq"))
WORKER = _HERE / "workers" / "autogptq_worker.py"
FORMATS: tuple[str, ...] = ("gptq",)
MIXED_PRECISION = False
TUNES = False
ROWS_TOGETHER = False
RESUMABLE = False
LAYERWISE = False
KEEPS_UNLOADED = False
MEMORY = MemoryProfile(libraries=386 * 2**20, float32="always", packed=True)
SUPPORTED = frozenset({("gptq", "W4A16"), ("gptq", "W8A16")})

# auto_gptq/modeling/auto.py (0.7.1), without those that need remote code.
_MODELS = frozenset(
    [
        "bloom",
        "codegen",
        "falcon",
        "gemma",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "gptj",
        "llama",
        "mistral",
        "mixtral",
        "opt",
        "qwen2",
    ]
)


def check(request: Request, source: Source) -> list[Problem]:
    """It supports a list of models, and quantizes every layer of their blocks."""
    problems = [
        *adapters.own_code(request, source),
        *adapters.one_scheme("AutoGPTQ", request),
        *adapters.listed_model("AutoGPTQ 0.7.1", _MODELS, source, _OTHER),
    ]
    for i, pattern in enumerate(request.own_ignore):
        if pattern != "lm_head":
            what = f"'{pattern}': AutoGPTQ quantizes every layer of a block, and skips only lm_head."
            where = Location(key=("quantize", "ignore", i))
            problems.append(Problem(UNSUPPORTED_PATTERN, what, where, _OTHER))
    return problems


_OTHER = "Use gptqmodel, its successor."


def job(request: Request, paths: Paths) -> Job:
    """The worker's job, with the config for transformers 4."""
    config = adapters.read_object(paths.checkpoint / "config.json")
    return Job(
        checkpoint=str(paths.checkpoint),
        tokens=paths.rows,
        bits=8 if request.scheme.startswith("W8") else 4,
        group_size=request.group_size or -1,
        damping=request.damping,
        trust_remote_code=request.trust_remote_code,
        config=config_compat.to_4(config),
        artifact_config=config_compat.both({**config, "dtype": "float16", "torch_dtype": "float16"}),
    )


def read(request: Request, out: Path, answer: Answer) -> Quantized:
    """The artifact's record."""
    return adapters.record(NAME, request, out, answer)
