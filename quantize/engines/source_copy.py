"""The source's files as a release, measured and published like any other.

They are those of the source, byte for byte. Served as they are, they have the same evidence
(docs/decisions/0042-the-source-as-a-release.md); with `method: online` the server quantizes them as it loads.
"""

from __future__ import annotations

from pathlib import Path

from qpack.core.problems import Code, Location, Problem
from qpack.core.records import Quantized
from quantize.checkpoint import reader_environment
from quantize.checkpoint.headers import read_safetensors
from quantize.checkpoint.source import Source
from quantize.engines import adapters
from quantize.engines.protocol import MemoryProfile, Paths, Request
from quantize.engines.workers.copy_job import Job
from quantize.engines.workers.engine_answer import Answer
from quantize.schemes.schemes import AS_IT_IS, ONLINE

NAME = "copy"
ENVIRONMENT = reader_environment.TRANSFORMERS
WORKER = Path(__file__).parent / "workers" / "copy_worker.py"
FORMATS: tuple[str, ...] = ("safetensors",)
MIXED_PRECISION = False
TUNES = False
ROWS_TOGETHER = False
RESUMABLE = False
LAYERWISE = False
KEEPS_UNLOADED = True
MEMORY = MemoryProfile()
SUPPORTED = frozenset({("none", "BF16"), ("none", AS_IT_IS), *(("online", name) for name in ONLINE)})

_OTHERS = ("F16", "F32", "F64")


_NOT_BF16 = Code("not-bf16", "The source isn't in bfloat16, and nothing is converted.")


def check(request: Request, source: Source) -> list[Problem]:
    """Nothing is converted: for `BF16`, and for a server that quantizes, the linear layers have to be in bfloat16
    (a GGUF is converted when it is fetched). A model that ships its own code needs the recipe's permission.
    """
    problems = [*adapters.own_code(request, source), *adapters.one_scheme("copy", request)]
    if request.scheme == AS_IT_IS:
        return problems
    if source.quantization is not None:
        what = f"the source isn't BF16 but quantized already ({source.quantization}), and this engine converts nothing."
        hint = f"Release it as it is: `scheme: {AS_IT_IS}`."
        return [*problems, Problem(_NOT_BF16, what, Location(key=("quantize", "scheme")), hint)]
    other = [] if source.kind == "gguf" else [tensor for tensor in source.linears if tensor.dtype in _OTHERS]
    if other:
        what = f"the source isn't BF16 but {other[0].dtype}, and this engine converts nothing."
        where = Location(key=("quantize", "scheme"), name=other[0].name, more=len(other) - 1)
        hint = f"Save it in bfloat16 first, or release it as it is: `scheme: {AS_IT_IS}`."
        problems.append(Problem(_NOT_BF16, what, where, hint))
    return problems


def job(request: Request, paths: Paths) -> Job:
    """The worker's job: the folder and its number of linear layers."""
    del request  # Every request is the same.
    files = sorted(paths.checkpoint.glob("*.safetensors"))
    tensors = [tensor for file in files for tensor in read_safetensors(file)[0]]
    return Job(str(paths.checkpoint), sum(tensor.is_linear for tensor in tensors))


def read(request: Request, out: Path, answer: Answer) -> Quantized:
    """The artifact's record."""
    return adapters.record(NAME, request, out, answer)
