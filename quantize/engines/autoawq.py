"""AutoAWQ 0.2.9, the last release of an archived project: AWQ in the format that servers call awq.

It needs an old transformers, which silently ignores the RoPE base in newer configs. So the worker gets the config for
transformers 4, and the artifact one with the keys of both versions (`config_compat`).
"""

from __future__ import annotations

from pathlib import Path

from qpack.core.problems import Location, Problem
from qpack.core.records import Quantized
from qpack.runtime.specs import Spec
from quantize.checkpoint import config_compat
from quantize.checkpoint.source import Source
from quantize.engines import adapters
from quantize.engines.adapters import NO_GROUP_SIZE, UNSUPPORTED_PATTERN
from quantize.engines.protocol import MemoryProfile, Paths, Request
from quantize.engines.workers.autoawq_job import Job
from quantize.engines.workers.engine_answer import Answer

_HERE = Path(__file__).parent

NAME = "autoawq"
ENVIRONMENT = Spec("autoawq", _HERE / "envs" / "autoawq", ("torch", "awq"))
WORKER = _HERE / "workers" / "autoawq_worker.py"
FORMATS: tuple[str, ...] = ("awq",)
MIXED_PRECISION = False
TUNES = False
ROWS_TOGETHER = True
RESUMABLE = False
LAYERWISE = False
KEEPS_UNLOADED = False
MEMORY = MemoryProfile(libraries=427 * 2**20, float32="on a CPU")
SUPPORTED = frozenset({("awq", "W4A16_ASYM")})

# Text models of awq/models/auto.py (0.2.9).
_MODELS = frozenset(
    [
        "aquila",
        "baichuan",
        "bloom",
        "cohere",
        "deepseek_v2",
        "deepseek_v3",
        "exaone",
        "falcon",
        "gemma",
        "gemma2",
        "gpt_bigcode",
        "gpt_neox",
        "gptj",
        "internlm2",
        "llama",
        "minicpm",
        "minicpm3",
        "mistral",
        "mixtral",
        "mpt",
        "opt",
        "phi3",
        "qwen",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "stablelm",
        "starcoder2",
    ]
)


def check(request: Request, source: Source) -> list[Problem]:
    """It supports a list of models, needs a group size, and skips layers by a part of their name."""
    problems = [
        *adapters.own_code(request, source),
        *adapters.one_scheme("AutoAWQ", request),
        *adapters.listed_model("AutoAWQ 0.2.9", _MODELS, source, "Use llmcompressor."),
    ]
    if request.group_size is None:
        what = "AutoAWQ needs a group size."
        where = Location(key=("quantize", "group_size"))
        problems.append(Problem(NO_GROUP_SIZE, what, where, "128 is usual; 64 and 32 are finer."))
    for i, pattern in enumerate(request.own_ignore):
        if pattern.startswith("re:"):
            what = f"'{pattern}': AutoAWQ skips layers by a part of their name and doesn't support regular expressions."
            where = Location(key=("quantize", "ignore", i))
            problems.append(Problem(UNSUPPORTED_PATTERN, what, where, "Name the part, or use llmcompressor."))
    return problems


def job(request: Request, paths: Paths) -> Job:
    """The worker's job, with the configs for transformers 4."""
    config = adapters.read_object(paths.checkpoint / "config.json")
    tokenizer = paths.checkpoint / "tokenizer_config.json"
    template = paths.checkpoint / "chat_template.jinja"
    return Job(
        checkpoint=str(paths.checkpoint),
        tokens=paths.rows,
        group_size=request.group_size or -1,
        ignore=tuple(pattern for pattern in request.own_ignore if pattern != "lm_head"),
        trust_remote_code=request.trust_remote_code,
        config=config_compat.to_4(config),
        artifact_config=config_compat.both({**config, "dtype": "float16", "torch_dtype": "float16"}),
        tokenizer_config=config_compat.tokenizer_to_4(
            adapters.read_object(tokenizer) if tokenizer.exists() else {},
            template.read_text(encoding="utf-8", errors="replace") if template.exists() else None,
        ),
    )


def read(request: Request, out: Path, answer: Answer) -> Quantized:
    """The artifact's record."""
    return adapters.record(NAME, request, out, answer)
