"""The linear layers that a config describes, for models whose files can't be read: Llama and models with its names.

Source: transformers' modeling_llama, modeling_qwen3_moe and modeling_gemma2 (names and shapes are those of the
checkpoints on the Hub).
"""

from __future__ import annotations

from dataclasses import replace

from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.model_config import ModelConfig
from quantize.checkpoint.source import Source

_DENSE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
_EXPERTS = ("qwen3_moe",)

# The largest known model has 25,000 experts (61 layers of 384); a config could ask for any number.
_MAX_MATRICES = 100_000

Shapes = dict[str, tuple[int, ...]]


def shapes(config: ModelConfig) -> Shapes | None:
    """Every linear layer and embedding, [out, in], by module name; None for an unknown model type."""
    kind = config.get("model_type")
    if kind not in (*_DENSE, *_EXPERTS):
        return None
    try:
        return _shapes(config, experts=int(config["num_experts"]) if kind in _EXPERTS else 0)
    except (KeyError, TypeError, ValueError):
        return None


def _shapes(config: ModelConfig, experts: int) -> Shapes:
    hidden, heads, vocabulary = (int(config[key]) for key in ("hidden_size", "num_attention_heads", "vocab_size"))
    head = int(config.get("head_dim") or hidden // heads)
    keys = int(config.get("num_key_value_heads") or heads)
    size = int(config["moe_intermediate_size" if experts else "intermediate_size"])
    number_of_layers = int(config["num_hidden_layers"])
    if number_of_layers * max(1, experts) > _MAX_MATRICES:
        raise ValueError(f"more than {_MAX_MATRICES:,} layers or experts")
    block: Shapes = {
        "self_attn.q_proj": (heads * head, hidden),
        "self_attn.k_proj": (keys * head, hidden),
        "self_attn.v_proj": (keys * head, hidden),
        "self_attn.o_proj": (hidden, heads * head),
    }
    for mlp in [f"mlp.experts.{number}." for number in range(experts)] or ["mlp."]:
        block |= {f"{mlp}gate_proj": (size, hidden), f"{mlp}up_proj": (size, hidden), f"{mlp}down_proj": (hidden, size)}
    if experts:
        block["mlp.gate"] = (experts, hidden)
    found: Shapes = {"model.embed_tokens": (vocabulary, hidden)}
    for number in range(number_of_layers):
        found.update({f"model.layers.{number}.{name}": shape for name, shape in block.items()})
    tied = config.get("tie_word_embeddings", str(config.get("model_type")).startswith("gemma"))
    return found if tied else {**found, "lm_head": (vocabulary, hidden)}


def filled(source: Source, config: ModelConfig | None = None) -> Source:
    """A source whose files can't be read, with the layers that its config (or the given one) describes.

    `unchecked` notes that. A source with headers is returned unchanged.
    """
    known = dict(config) if config is not None and not source.config else source.config
    if source.tensors or not known:
        return source
    made = shapes(known)
    if made is None:
        left = f"layer shapes: unknown for models of type '{known.get('model_type')}' without their files"
        return replace(source, config=known, unchecked=(*source.unchecked, left))
    tensors = tuple(Tensor(f"{name}.weight", "BF16", shape) for name, shape in made.items())
    rests = "layers: taken from the config, no file was read"
    return replace(source, config=known, tensors=tensors, unchecked=(*source.unchecked, rests))
