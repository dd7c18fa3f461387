"""What a checkpoint's folder lacks, told from the names of its files: a source's, an artifact's, any checkpoint's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from qpack.core.jsonfile import JsonObject
from qpack.core.problems import Code, Location, Problem

_NO_CONFIG = Code("no-config", "There is no config.json.")
_NO_WEIGHTS = Code("no-weights", "There are no safetensors weights.")
MISSING_FILE = Code(
    "missing-file", "A file is missing: tokenizer, chat template, generation config, processor.", fixable=True
)
_MISSING_SHARD = Code("missing-shard", "The index lists tensors that no file has.")

# Each is a tokenizer, if all of its files are there.
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"), ("spiece.model",))
TEKKEN = "tekken.json"
"""Mistral's own tokenizer: vLLM reads it, and transformers doesn't."""
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def no_config(names: Collection[str], where: Location) -> list[Problem]:
    """Whether config.json is missing."""
    if "config.json" in names:
        return []
    hint = "Copy it from the model's origin, or name the folder of a transformers checkpoint."
    return [Problem(_NO_CONFIG, "there is no config.json", where, hint)]


def no_tokenizer(names: Collection[str], where: Location, *, tekken: bool) -> list[Problem]:
    """Whether every kind of tokenizer is missing; `tekken`: whether Mistral's own counts as one."""
    known = (*_TOKENIZERS, (TEKKEN,)) if tekken else _TOKENIZERS
    if any(set(files) <= set(names) for files in known):
        return []
    hint = "Copy the tokenizer's files from the model's origin."
    return [Problem(MISSING_FILE, "there is no tokenizer (tokenizer.json or tokenizer.model)", where, hint)]


def no_weights(names: Collection[str], where: Location) -> list[Problem]:
    """Whether there are no safetensors; pickled weights are none, because loading them can run code."""
    if any(name.endswith(".safetensors") for name in names):
        return []
    pickled = sorted(name for name in names if name.endswith(_PICKLED))
    if not pickled:
        return [Problem(_NO_WEIGHTS, "there are no safetensors weights", where)]
    what = f"there are pickled weights only ({pickled[0]}): loading them can run code, and qpack never does"
    hint = "If you trust them, load them with transformers and call `save_pretrained`: it writes safetensors."
    return [Problem(_NO_WEIGHTS, what, where, hint)]


def missing_shards(
    index: Mapping[str, str], names: Collection[str], where: Location, tensors: Collection[str] | None = None
) -> list[Problem]:
    """Tensors that the index (tensor to file) lists and no file has; `tensors` of the files, where they are known."""
    gone = sorted(set(index.values()) - set(names))
    lost = sorted(name for name, file in index.items() if (file in gone if tensors is None else name not in tensors))
    if not lost:
        return []
    files = f" ({gone[0]}{f' and {len(gone) - 1} more' if len(gone) > 1 else ''} is missing)" if gone else ""
    what = f"{lost[0]}{f' and {len(lost) - 1} more' if len(lost) > 1 else ''}: in the index and in no file{files}"
    hint = "Copy the missing files again: some servers start without them, with weights never filled in."
    return [Problem(_MISSING_SHARD, what, where, hint)]


SIDECARS = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files beside config.json in which older releases of these tools store the quantization config."""


def with_sidecar(config: JsonObject, read: Callable[[str], JsonObject]) -> JsonObject:
    """The config with the quantization config of a file of its own, where it has none; `read` gives a file, empty where
    there is none. vLLM reads Model-Optimizer's so (`transformers_utils/config.py`).
    """
    if config.get("quantization_config") is not None:
        return config
    for name, method in SIDECARS.items():
        if found := read(name):
            return {**config, "quantization_config": {"quant_method": method, **found}}
    return config
