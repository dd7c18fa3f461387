"""llm-compressor (vLLM project): GPTQ, AWQ, SmoothQuant and round to nearest, saved as compressed-tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qpack.envs import Spec
from qpack.files import digest_tree
from qpack.results import Quantized
from quantize.engine import Complaint, Request
from quantize.headers import bytes_of, read_safetensors
from quantize.schemes import SCHEMES
from quantize.source import Source

_HERE = Path(__file__).parent

NAME = "llmcompressor"
ENVIRONMENT = Spec("llmcompressor", _HERE / "envs" / "llmcompressor", ("torch", "llmcompressor"))
WORKER = _HERE / "workers" / "llmcompressor_worker.py"
WAYS = frozenset(
    (method, scheme.name) for scheme in SCHEMES.values() for method in scheme.methods if method != "awq+gptq"
)


def check(request: Request, source: Source) -> list[Complaint]:
    """It loads whatever transformers knows; a model that ships its own code needs the recipe's leave."""
    if "auto_map" in source.config and not request.trust_remote_code:
        what = "the checkpoint ships Python code that transformers would run, and it is off"
        return [
            Complaint(what, ("model", "trust_remote_code"), "Read the code, then set model.trust_remote_code: true.")
        ]
    return []


def job(request: Request, checkpoint: Path, tokens: Path | None) -> dict[str, Any]:
    """Everything that the worker needs."""
    return {
        "checkpoint": str(checkpoint),
        "tokens": str(tokens) if tokens else None,
        "method": request.method,
        "scheme": request.scheme,
        "group_size": request.group_size,
        "ignore": list(request.ignore),
        "damping": request.damping,
        "trust_remote_code": request.trust_remote_code,
    }


def read(request: Request, out: Path, answer: dict[str, Any]) -> Quantized:
    """The artifact's record; digests are taken from the files as they lie there."""
    files, digest = digest_tree(out / "checkpoint")
    tensors = [tensor for path in (out / "checkpoint").glob("*.safetensors") for tensor in read_safetensors(path)[0]]
    return Quantized(
        engine=NAME,
        engine_version=answer["engine_version"],
        method=request.method,
        scheme=request.scheme,
        group_size=request.group_size,
        digest=digest,
        files=files,
        weights_bytes=sum(map(bytes_of, tensors)),
        quantized_layers=answer["quantized_layers"],
        linear_layers=answer["linear_layers"],
        seconds=answer["seconds"],
        peak_memory_bytes=answer["peak_memory_bytes"],
    )
