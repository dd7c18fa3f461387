"""A checkpoint's config for transformers 4 and 5, which use different keys.

5 has `rope_parameters` (with `rope_theta` in it), `dtype`, the tokenizer class `TokenizersBackend`, and the chat
template in `chat_template.jinja`; 4 has `rope_theta` and `rope_scaling`, `torch_dtype`, `PreTrainedTokenizerFast`, and
reads the template from `tokenizer_config.json` as well. Neither warns about the other's keys. Sources:
`modeling_rope_utils.py` of transformers 5, and its migration guide.

Law: `to_5(to_4(config))` and `to_4(to_5(config))` have the same meaning as `config` (`rope`, `dtype`), and converting
twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qpack.core import model_shapes
from quantize.checkpoint import model_config
from quantize.checkpoint.model_config import ModelConfig

# The default of transformers 4. Models with another default write the key.
DEFAULT_THETA = 10000.0
_MAX_THETA = 1e30
NEW_TOKENIZER, OLD_TOKENIZER = "TokenizersBackend", "PreTrainedTokenizerFast"
# Types that 5 renamed, and those that need the original length.
_RENAMED = {"su": "longrope", "mrope": "default"}
_STRETCHED = ("llama3", "yarn", "longrope")

Rope = Mapping[str, Any]
"""RoPE as one mapping: `rope_theta`, `rope_type` and the type's keys; one mapping per layer type if they differ."""


def rope(config: ModelConfig) -> Rope | None:
    """The RoPE settings of a config of either version; None without any.

    The new key has priority, as in transformers 5. Raises ValueError for invalid keys.
    """
    new = _new(config)
    return new if new is not None else _old(config)


def rope_conflict(config: ModelConfig) -> str | None:
    """A description of the conflict between old and new keys; None if they agree or only one is set."""
    new, old = _new(config), _old(config)
    if new is None or old is None or new == old or _nested(new):
        return None
    return f"rope_parameters: {plain(new)}; rope_theta and rope_scaling: {plain(old)}"


def _new(config: ModelConfig) -> Rope | None:
    found = config.get("rope_parameters")
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise ValueError(f"rope_parameters has to be a mapping, not {model_config.brief(found)}")
    if _nested(found):
        return {layer: _whole(inner, config) for layer, inner in found.items() if isinstance(inner, Mapping)}
    return _whole(found, config)


def _old(config: ModelConfig) -> Rope | None:
    theta, scaling = config.get("rope_theta"), config.get("rope_scaling")
    if theta is None and scaling is None:
        return None
    if scaling is not None and not isinstance(scaling, Mapping):
        raise ValueError(f"rope_scaling has to be a mapping or null, not {model_config.brief(scaling)}")
    return _whole(scaling or {}, config)


def _whole(given: ModelConfig, config: ModelConfig) -> Rope:
    """Normalized: `type` is the old name of `rope_type`; some keys may be beside the mapping."""
    found = {key: value for key, value in given.items() if key != "type" and value is not None}
    kind = str(given.get("rope_type", given.get("type")) or "default")
    found["rope_type"] = _RENAMED.get(kind, kind)
    if found["rope_type"] in _STRETCHED:
        # 5 moves the length into the mapping; the one beside it has priority, then the model's.
        length = config.get("original_max_position_embeddings", found.get("original_max_position_embeddings"))
        length = config.get("max_position_embeddings") if length is None else length
        if length is not None:
            found["original_max_position_embeddings"] = length
    theta = given.get("rope_theta") or config.get("rope_theta") or DEFAULT_THETA
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta < _MAX_THETA:
        raise ValueError(f"rope_theta has to be a number above 0, not {model_config.brief(theta)}")
    found["rope_theta"] = float(theta)
    factor = given.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if factor is not None:
        found["partial_rotary_factor"] = factor
    return dict(sorted(found.items()))


def _nested(found: ModelConfig) -> bool:
    """Whether it has a mapping for each type of layer (Gemma 3, ModernBERT)."""
    return bool(found) and all(isinstance(inner, Mapping) or inner is None for inner in found.values())


def plain(found: Rope | None) -> str:
    """RoPE for a message."""
    if found is None:
        return "not given"
    return ", ".join(f"{key[:40]} {_words(value)}" for key, value in list(found.items())[:12])


def _words(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def dtype(config: ModelConfig) -> str | None:
    """The dtype of a config of either version; the new key has priority."""
    found = config.get("dtype") or config.get("torch_dtype")
    return str(found).removeprefix("torch.") if found else None


def to_4(config: ModelConfig) -> dict[str, Any]:
    """The config for transformers 4. Raises ValueError for settings that 4 doesn't support (RoPE per layer type)."""

    def change(part: dict[str, Any]) -> None:
        found = rope(part)
        part.pop("rope_parameters", None)
        if found is not None and _nested(found):
            raise ValueError("RoPE differs by layer type, which transformers 4 has no common keys for")
        if found is not None:
            rest = {k: v for k, v in found.items() if k not in ("rope_theta", "partial_rotary_factor")}
            part["rope_theta"] = found["rope_theta"]
            part["rope_scaling"] = None if rest == {"rope_type": "default"} else rest
            if "partial_rotary_factor" in found:
                part["partial_rotary_factor"] = found["partial_rotary_factor"]
        kind = dtype(part)
        part.pop("dtype", None)
        if kind:
            part["torch_dtype"] = kind

    return _everywhere(config, change)


def to_5(config: ModelConfig) -> dict[str, Any]:
    """The config for transformers 5."""

    def change(part: dict[str, Any]) -> None:
        found = rope(part)
        for key in ("rope_theta", "rope_scaling", "partial_rotary_factor"):
            if found is not None:
                part.pop(key, None)
        if found is not None:
            part["rope_parameters"] = dict(found)
        kind = dtype(part)
        part.pop("torch_dtype", None)
        if kind:
            part["dtype"] = kind

    return _everywhere(config, change)


def both(config: ModelConfig) -> dict[str, Any]:
    """The config with the keys of both versions.

    Settings that 4 doesn't support have only the keys of 5.
    """
    new = to_5(config)
    try:
        old = to_4(config)
    except ValueError:
        return new

    def join(left: dict[str, Any], right: ModelConfig) -> dict[str, Any]:
        joined = {**right, **left}
        for key in _PARTS:
            if isinstance(left.get(key), dict) and isinstance(right.get(key), dict):
                joined[key] = join(left[key], right[key])
        return joined

    return join(new, old)


_PARTS = ("text_config", "vision_config", "audio_config")


def _everywhere(config: ModelConfig, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Apply `change` to a copy of the config and its nested configs."""
    copy = dict(config)
    for key in _PARTS:
        if isinstance(copy.get(key), Mapping):
            copy[key] = _everywhere(copy[key], change)
    change(copy)
    return copy


def tokenizer_to_4(config: ModelConfig, template: str | None) -> dict[str, object]:
    """`tokenizer_config.json` for transformers 4; `template` is the text of `chat_template.jinja`, if any."""
    copy = dict(config)
    if copy.get("tokenizer_class") == NEW_TOKENIZER:
        copy["tokenizer_class"] = OLD_TOKENIZER
    copy.pop("backend", None)
    if template is not None:
        copy["chat_template"] = template
    return copy


def tokenizer_to_5(config: ModelConfig) -> tuple[dict[str, Any], str | None]:
    """`tokenizer_config.json` for transformers 5, and the text of `chat_template.jinja`.

    Named templates (a list) stay in the field: a single file can't hold them.
    """
    copy = dict(config)
    if copy.get("tokenizer_class") == OLD_TOKENIZER:
        copy["tokenizer_class"] = NEW_TOKENIZER
    template = copy.get("chat_template")
    if isinstance(template, str):
        del copy["chat_template"]
        return copy, template
    return copy, None


_NEW_LAYER_TYPES = {"indexed_attention": ((5, 18), "deepseek_sparse_attention"),
                    "reference_sliding_attention": ((5, 20), "")}  # fmt: skip
"""Types of layers in a config's `layer_types`: transformers releases before this one refuse them (`ALLOWED_LAYER_TYPES`
of their configuration_utils), and the name that all of transformers 5 read, if there is one."""


def new_layer_types(config: ModelConfig, release: tuple[int, int]) -> dict[str, str]:
    """Types of layers that transformers `release` refuses to load, with the name that it reads (empty: none)."""
    listed = model_shapes.language_model(config).get("layer_types")
    found = {kind for kind in listed if isinstance(kind, str)} if isinstance(listed, list) else set()
    return {kind: name for kind, (since, name) in _NEW_LAYER_TYPES.items() if kind in found and release < since}
