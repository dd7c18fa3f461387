"""What every engine's adapter does the same: a leave that it asks for, and the record of what its worker made."""

from __future__ import annotations

from pathlib import Path

from qpack.core import jsonfile
from qpack.core.errors import QuantizeError
from qpack.core.hashing import digest_tree
from qpack.core.records import Quantized
from quantize.checkpoint.headers import bytes_of, read_safetensors
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Complaint, Request
from quantize.engines.workers.engine_answer import Answer


def read_object(path: Path) -> jsonfile.JsonObject:
    """A config of the source, which anybody may have written. Raises QuantizeError."""
    try:
        return jsonfile.read_object(path)
    except (OSError, jsonfile.NotJson) as error:
        raise QuantizeError(f"{path} {error}", hint="`qpack doctor` looks at the whole checkpoint.") from error


def own_code(request: Request, source: Source) -> list[Complaint]:
    """A model that ships its own code needs the recipe's leave."""
    if "auto_map" in source.config and not request.trust_remote_code:
        what = "the checkpoint ships Python code that transformers would run, and it is off"
        return [
            Complaint(what, ("model", "trust_remote_code"), "Read the code, then set model.trust_remote_code: true.")
        ]
    return []


def one_scheme(name: str, request: Request) -> list[Complaint]:
    """What engines can't do that make one scheme for all layers and leave the KV cache alone."""
    asked = (("overrides", bool(request.overrides), "one scheme for all layers"),
             ("kv_cache", request.kv_cache is not None, "weights alone, and no scales of a KV cache"))  # fmt: skip
    return [
        Complaint(f"{name} makes {what}.", ("quantize", key), "Take `engine: llmcompressor`.")
        for key, wanted, what in asked
        if wanted
    ]


def record(name: str, request: Request, out: Path, answer: Answer) -> Quantized:
    """The artifact in `out/checkpoint`; digests are taken from the files as they lie there.

    Raises QuantizeError when there is a link among them: the files are published.
    """
    files, digest = digest_tree(out / "checkpoint", links=False)
    tensors = [tensor for path in (out / "checkpoint").glob("*.safetensors") for tensor in read_safetensors(path)[0]]
    return Quantized(
        engine=name,
        engine_version=answer.engine_version,
        method=request.method,
        scheme=request.scheme,
        group_size=request.group_size,
        digest=digest,
        files=files,
        weights_bytes=sum(map(bytes_of, tensors)),
        quantized_layers=answer.quantized_layers,
        linear_layers=answer.linear_layers,
        seconds=answer.seconds,
        peak_memory_bytes=answer.peak_memory_bytes,
        format=request.format,
    )
