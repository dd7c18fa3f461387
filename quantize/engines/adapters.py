"""Shared by the engines' adapters: checks, and the record of the artifact."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from qpack.core import jsonfile
from qpack.core.errors import QuantizeError
from qpack.core.hashing import digest_tree
from qpack.core.problems import UNREADABLE_FILE, Code, Location, Problem
from qpack.core.records import Quantized
from quantize.checkpoint import config_compat
from quantize.checkpoint.headers import bytes_of, read_safetensors
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Request
from quantize.engines.workers.engine_answer import Answer

UNKNOWN_MODEL = Code("unknown-model", "The engine doesn't know models of this kind.")
NO_GROUP_SIZE = Code("no-group-size", "The engine or the format needs a group size.")
UNSUPPORTED_PATTERN = Code("unsupported-pattern", "The engine can't leave out layers by such a pattern.")
FUSED_BIASES = Code("fused-biases", "One tensor holds the biases of all experts of a layer: it can't be quantized.")
_OWN_CODE = Code("own-code", "The checkpoint ships code that transformers would run, without permission.")
_NEWER_CONFIG = Code("newer-config", "The config has what the transformers release of an engine refuses.")
_ONE_SCHEME = Code("one-scheme", "The engine makes one scheme for all layers, and no scales of a KV cache.")


def read_object(path: Path) -> jsonfile.JsonObject:
    """A config of the source, which is untrusted. Raises QuantizeError."""
    try:
        return jsonfile.read_object(path)
    except (OSError, jsonfile.NotJson) as error:
        raise QuantizeError(
            UNREADABLE_FILE, f"{path} {error}", hint="`qpack doctor` checks the whole checkpoint."
        ) from error


def own_code(request: Request, source: Source) -> list[Problem]:
    """A model that ships its own code needs the recipe's permission."""
    if "auto_map" in source.config and not request.trust_remote_code:
        what = "the checkpoint ships Python code, which is not run by default"
        hint = "Read the code, then set model.trust_remote_code: true."
        return [Problem(_OWN_CODE, what, Location(key=("model", "trust_remote_code")), hint)]
    return []


def new_layer_types(name: str, release: tuple[int, int], source: Source) -> list[Problem]:
    """Layers of a type that the engine's transformers, of `release`, refuses: a newer one wrote the config."""
    found = config_compat.new_layer_types(source.config, release)
    version, where = ".".join(map(str, release)), Location(key=("model", "source"))
    return [
        Problem(
            _NEWER_CONFIG,
            f"its config.json has layers of type '{kind}', written by a newer transformers than {name}'s {version}, "
            "which refuses them.",
            where,
            f"Name them '{other}' in its layer_types." if other else "Use another engine.",
        )
        for kind, other in found.items()
    ]


def listed_model(name: str, models: Set[str], source: Source, hint: str) -> list[Problem]:
    """Problems for an engine (`name` with its version) that supports the model types of a list, on transformers 4."""
    kind, where = source.config.get("model_type"), Location(key=("quantize", "engine"))
    found = []
    if kind is not None and kind not in models:
        found.append(Problem(UNKNOWN_MODEL, f"{name} doesn't support models of type '{kind}'.", where, hint))
    try:
        config_compat.to_4(source.config)
    except ValueError as error:
        found.append(Problem(UNKNOWN_MODEL, f"{name} needs transformers 4: {error}.", where, hint))
    return found


def one_scheme(name: str, request: Request) -> list[Problem]:
    """Problems for engines with one scheme for all layers and no KV cache scales."""
    asked = (("overrides", bool(request.overrides), "one scheme for all layers"),
             ("kv_cache", request.kv_cache is not None, "weights alone, and no scales of a KV cache"))  # fmt: skip
    return [
        Problem(_ONE_SCHEME, f"{name} makes {what}.", Location(key=("quantize", key)), "Use `engine: llmcompressor`.")
        for key, wanted, what in asked
        if wanted
    ]


def fused_biases(request: Request, source: Source) -> list[Problem]:
    """Experts to quantize whose biases lie in one tensor for all of them (gpt-oss): no server reads such experts one by
    one. Experts that the request ignores stay as they are.
    """
    biased = [
        tensor.name
        for tensor in source.tensors
        # A vector is what a router adds to its choices (`e_score_correction_bias`).
        if "experts" in tensor.name and tensor.name.endswith("_bias") and len(tensor.shape) > 1
    ]
    blocks = tuple({f"{name.rpartition('.')[0]}." for name in biased})
    if not any(name.startswith(blocks) for kind in source.split(request.ignore)[0] for name in kind.names):
        return []
    what = f"{biased[0]} holds the biases of all experts, which vLLM reads unquantized or as MXFP4 alone."
    hint = (
        "Use `method: none`, which serves the source as it is, or leave the experts alone: ignore: ['re:.*experts.*']."
    )
    return [Problem(FUSED_BIASES, what, Location(key=("quantize", "method")), hint)]


def record(name: str, request: Request, out: Path, answer: Answer) -> Quantized:
    """The record of the artifact in `out/checkpoint`, with the digests of its files.

    Raises QuantizeError for a link: the files are published.
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
