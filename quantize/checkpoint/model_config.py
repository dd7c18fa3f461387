"""A model's config.json with validated types and ranges for every key that qpack uses.

`read` returns the config without invalid keys, and the faults. Unused keys are kept unchanged. Null is the same as a
missing key. Sizes per layer (a list, as `intermediate_size` of Gemma 3n) aren't a single size, and are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from qpack.core import checkpoint_files, jsonfile
from qpack.core.jsonfile import JsonObject, NotJson
from qpack.core.problems import UNREADABLE_FILE, Code, KeyPath, Location, Problem

ModelConfig: TypeAlias = Mapping[str, Any]
"""A model's config.json. The keys that qpack uses are checked; others are as they were."""

NOT_JSON = Code("not-json", "A JSON file can't be read.")
_CONFIG_VALUE = Code("config-value", "A key of config.json has an impossible value: a size that is text, no heads.")

MAX_SIZE = 2**31 - 1
MAX_LAYERS = 10_000
"""Of a decoder, and of experts per layer: ten times as many as any known model."""
_MAX_WORD = 200

_SIZES = ("hidden_size", "intermediate_size", "moe_intermediate_size", "num_attention_heads", "num_key_value_heads",
          "head_dim", "vocab_size", "max_position_embeddings", "original_max_position_embeddings")  # fmt: skip
_COUNTS = ("num_experts", "num_local_experts", "num_experts_per_tok", "num_nextn_predict_layers",
           "mtp_num_hidden_layers", "num_mtp_modules")  # fmt: skip
_FLAGS = ("tie_word_embeddings", "is_encoder_decoder")
_INSIDE = "text_config"


def read(found: Any, file: str) -> tuple[ModelConfig, list[Problem]]:
    """The config of a JSON value without invalid keys, and the problems, each at its key of `file`."""
    if not isinstance(found, Mapping):
        return {}, [_wrong(file, (), found, "a JSON object")]
    return _object(found, file, ())


def read_file(path: Path) -> tuple[ModelConfig, list[Problem]]:
    """The same for a file."""
    try:
        found = jsonfile.read(path)
    except NotJson as error:
        return {}, [Problem(NOT_JSON, str(error), Location(str(path)))]
    except OSError as error:
        return {}, [Problem(UNREADABLE_FILE, f"can't be read: {error}", Location(str(path)))]
    return read(found, str(path))


def with_sidecar(config: ModelConfig, folder: Path) -> ModelConfig:
    """The config with the quantization config that a file of its own beside it has, where it has none."""
    return checkpoint_files.with_sidecar(config, lambda name: _object_of(folder / name))


def _object_of(path: Path) -> JsonObject:
    try:
        return jsonfile.read_object(path)
    except (NotJson, OSError):
        return {}


def _wrong(file: str, at: KeyPath, value: Any, wanted: str) -> Problem:
    what = f"is {brief(value)}, and has to be {wanted}"
    return Problem(_CONFIG_VALUE, what, Location(file, key=at), "Restore the model's own value.")


def _object(found: Mapping[str, Any], file: str, at: KeyPath) -> tuple[dict[str, Any], list[Problem]]:
    config: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, value in found.items():
        if key == _INSIDE and isinstance(value, Mapping):
            config[key], inside = _object(value, file, (*at, key))
            problems += inside
            continue
        rule = _RULES.get(key)
        if rule is None or value is None:
            config[key] = value
        elif (wrong := rule(value)) is not None:
            problems.append(_wrong(file, (*at, key), value, wrong))
        elif key not in _SINGLE or not isinstance(value, list):
            config[key] = value
    return config, problems


def _size(least: int, most: int) -> Callable[[Any], str | None]:
    def rule(value: Any) -> str | None:
        each = value if isinstance(value, list) else [value]
        right = all(isinstance(n, int) and not isinstance(n, bool) and least <= n <= most for n in each)
        return None if right else f"a whole number from {least} to {most}"

    return rule


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _word(value: Any) -> str | None:
    right = isinstance(value, str) and 0 < len(value) <= _MAX_WORD and value.isprintable()
    return None if right else f"a word of at most {_MAX_WORD} characters"


def _words(value: Any) -> str | None:
    right = isinstance(value, list) and all(_word(each) is None for each in value)
    return None if right else "a list of words"


def _mapping(value: Any) -> str | None:
    return None if isinstance(value, Mapping) else "a JSON object"


def _dtype(value: Any) -> str | None:
    # A composite model may give each of its parts one.
    right = _word(value) is None or (isinstance(value, Mapping) and all(_word(each) is None for each in value.values()))
    return None if right else "the name of a type"


_SINGLE = frozenset((*_SIZES, *_COUNTS, "num_hidden_layers"))
_RULES: dict[str, Callable[[Any], str | None]] = {
    **dict.fromkeys(_SIZES, _size(1, MAX_SIZE)),
    **dict.fromkeys(_COUNTS, _size(0, MAX_SIZE)),
    "num_hidden_layers": _size(0, MAX_LAYERS),
    **dict.fromkeys(_FLAGS, _flag),
    "model_type": _word,
    "architectures": _words,
    **dict.fromkeys((_INSIDE, "quantization_config"), _mapping),
    **dict.fromkeys(("dtype", "torch_dtype"), _dtype),
}


def brief(value: Any) -> str:
    """A value for a message, shortened."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "...")
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else "a number of more than 20 digits"
    if isinstance(value, float):
        return str(value)
    return "a list" if isinstance(value, list) else "an object"
