"""How a model divides: groups over input channels, heads and channels over GPUs, keys and values into a cache.

One function per problem. `check` calls it before a model is quantized, `doctor` for what was made of it, `manifest
lint` for what is served. A config.json and sizes are all that is needed.
"""

from __future__ import annotations

from collections.abc import Mapping

from qpack.core.jsonfile import JsonObject
from qpack.core.problems import Code, Location, Problem

GROUP_SIZE = Code("group-size", "Groups don't divide the input channels.")
_GROUP_SPLIT = Code("group-split", "Groups don't fit into the input channels that one GPU has.")
_TENSOR_PARALLEL = Code("tensor-parallel", "GPUs can't share the heads, channels or vocabulary of a model evenly.")
_KV_CACHE_SIZE = Code("kv-cache-size", "One request of the greatest length doesn't fit into the KV cache.")

_EXPERT_PARALLEL = Code("expert-parallel", "A model has no experts, or too few for the GPUs that share them.")

_GIB = 2**30
# Names of the number of routed experts: Qwen and gpt-oss, Mixtral and Llama 4, DeepSeek and Kimi, Ernie.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# vLLM pads the vocabulary to a multiple of this (`DEFAULT_VOCAB_PADDING_SIZE`).
_VOCABULARY = 64
_GPUS = (1, 2, 4, 8, 16)
# Attention whose keys and values aren't two vectors per head and layer.
_OTHER_ATTENTION = ("kv_lora_rank", "layers_block_type")


def language_model(config: JsonObject) -> JsonObject:
    """The part of a config.json that is about the language model: all of it, or a part of it (`text_config`; InternVL
    names it `llm_config`, DeepSeek-VL2 `language_config`, Qwen's Omni models have it in `thinker_config`).
    """
    for key in ("thinker_config", "text_config", "llm_config", "language_config"):
        if isinstance(inner := config.get(key), Mapping):
            return language_model(inner) if key == "thinker_config" else inner
    return config


def uneven_groups(size: int, channels: int, where: Location, hint: str = "") -> list[Problem]:
    """Whether groups of `size` divide a layer's input channels."""
    if channels % size == 0:
        return []
    return [Problem(GROUP_SIZE, f"groups of {size} don't divide {channels} input channels", where, hint)]


def split_groups(size: int, channels: int, gpus: int, where: Location) -> list[Problem]:
    """Whether whole groups of a layer's input channels lie on each GPU, where the layer is cut along them."""
    if gpus < 2 or channels % (size * gpus) == 0:
        return []
    what = f"groups of {size} don't fit into {channels / gpus:g} input channels, the share of one of {gpus} GPUs"
    return [Problem(_GROUP_SPLIT, what, where, "Use a smaller group size or fewer GPUs.")]


def unshared_heads(config: JsonObject, gpus: int, where: Location) -> list[Problem]:
    """Heads and vocabulary that GPUs can't share: vLLM divides them without rest (`vllm/distributed/utils.py: divide`).
    Fewer key and value heads than GPUs are repeated, if they divide them.
    """
    problems = []
    heads, pairs = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if isinstance(heads, int):
        problems += _uneven(f"{heads} attention heads", heads, gpus, where)
    if isinstance(pairs, int) and pairs > 0 and not problems and gpus % pairs != 0:
        problems += _uneven(f"{pairs} key and value heads", pairs, gpus, where)
    if isinstance(words := config.get("vocab_size"), int):
        padded = -(-words // _VOCABULARY) * _VOCABULARY
        problems += _uneven(f"{words} words of the vocabulary", padded, gpus, where)
    return problems


def unshared_channels(channels: int, gpus: int, where: Location) -> list[Problem]:
    """Whether GPUs can share the channels of a feed-forward layer."""
    return _uneven(f"{channels} channels of a feed-forward layer", channels, gpus, where)


def experts(config: JsonObject) -> int:
    """Routed experts per layer of a mixture of experts; 0 for other models."""
    return next((n for key in _EXPERTS if isinstance(n := config.get(key), int) and n > 1), 0)


def feed_forward(config: JsonObject, tensor: int, data: int, *, whole_experts: bool) -> list[tuple[int, int]]:
    """Channels of feed-forward layers, each with the number of GPUs that share them, for `tensor` GPUs per copy of the
    model and `data` copies. Copies share the experts of a layer: as whole experts, or each expert's channels
    (`FusedMoEParallelConfig` in vllm/model_executor/layers/fused_moe/config.py).
    """
    dense, own = config.get("intermediate_size"), config.get("moe_intermediate_size")
    found: list[tuple[int, int]] = []
    if experts(config) and not isinstance(own, int):
        dense, own = None, dense
    if isinstance(dense, int):
        found.append((dense, tensor))
    if isinstance(own, int) and experts(config) and not whole_experts:
        found.append((own, tensor * data))
    return found


def unspread_experts(config: JsonObject, gpus: int, where: Location) -> list[Problem]:
    """Whether there is a whole expert for each of `gpus` GPUs, as expert parallelism needs."""
    count = experts(config)
    if count >= max(1, gpus):
        return []
    what = f"{gpus} GPUs can't share {count} experts" if count else "the model has no experts to spread over GPUs"
    hint = f"Use at most {count} GPUs." if count else "Leave enable-expert-parallel out."
    return [Problem(_EXPERT_PARALLEL, what, where, hint)]


def expert_share(config: JsonObject) -> float:
    """The share of a model's parameters that is in routed experts, from the shapes in its config; 0 without experts."""

    def size(key: str, instead: int = 0) -> int:
        found = config.get(key)
        return found if isinstance(found, int) else instead

    layers, hidden, heads = size("num_hidden_layers"), size("hidden_size"), size("num_attention_heads")
    inner, dense = size("intermediate_size"), size("first_k_dense_replace")
    own, head = size("moe_intermediate_size", inner), size("head_dim", hidden // max(1, heads))
    routed = (layers - dense) * experts(config) * 3 * hidden * own
    if routed <= 0:
        return 0.0
    attention = 2 * hidden * head * (heads + size("num_key_value_heads", heads))
    words = size("vocab_size") * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return routed / (routed + layers * attention + dense * 3 * hidden * inner + words)


def _uneven(what: str, size: int, gpus: int, where: Location) -> list[Problem]:
    if gpus < 2 or size % gpus == 0:
        return []
    fitting = ", ".join(str(count) for count in _GPUS if size % count == 0)
    return [Problem(_TENSOR_PARALLEL, f"{gpus} GPUs can't share {what}", where, f"Use {fitting}.")]


def cache_bytes_per_token(config: JsonObject, gpus: int, item_bytes: int = 2) -> int | None:
    """Bytes of KV cache that one token takes on one GPU: keys and values of every layer. None where the config doesn't
    give the shapes, and for attention that keeps something else or less.
    """
    kinds = config.get("layer_types")
    if any(config.get(key) for key in _OTHER_ATTENTION) or (kinds and set(kinds) != {"full_attention"}):
        return None
    if config.get("sliding_window") and config.get("use_sliding_window") is not False and not kinds:
        return None
    layers, heads, hidden = (config.get(key) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    pairs, width = config.get("num_key_value_heads") or heads, config.get("head_dim")
    if width is None and isinstance(hidden, int) and isinstance(heads, int):
        width = hidden // max(1, heads)
    if not (isinstance(layers, int) and isinstance(pairs, int) and isinstance(width, int)):
        return None
    return 2 * layers * max(1, pairs // max(1, gpus)) * width * item_bytes


def short_cache(tokens: int, needed: int, budget: int, where: Location, part: str = "") -> list[Problem]:
    """Whether one request of `tokens`, which needs so many bytes on a GPU, fits into the KV cache's budget: else vLLM
    doesn't start. `part` says what of them is for another model.
    """
    if needed <= budget:
        return []
    what = (
        f"one request of {tokens:,} tokens needs {needed / _GIB:.2f} GiB of KV cache on each device{part}, and the "
        f"budget of {budget / _GIB:.2f} GiB holds {budget * tokens // needed:,}"
    )
    return [Problem(_KV_CACHE_SIZE, what, where, "Raise serve.kv_cache_gib, or lower serve.max_model_len.")]
