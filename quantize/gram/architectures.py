"""Where the norms and linear layers of a decoder layer sit: which share an input, and what can absorb its scale.

Read off transformers' modelling files. Pure data: the adapter reads it without torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """Linear layers that read one input, and the module before it that can divide that input by a scale.

    `absorber` is a norm (its weight is divided) or a linear layer (its rows are). `heads`: the input is attention's
    output, whose channels repeat the absorber's rows for every query head of a key-value head.
    """

    name: str
    readers: tuple[str, ...]
    absorber: str
    norm: bool
    heads: bool = False


_LLAMA = (
    Site("qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm", norm=True),
    Site("o", ("self_attn.o_proj",), "self_attn.v_proj", norm=False, heads=True),
    Site("gate_up", ("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm", norm=True),
    Site("down", ("mlp.down_proj",), "mlp.up_proj", norm=False),
)

ARCHITECTURES: dict[str, tuple[Site, ...]] = {"llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA}
"""Sites by the `model_type` of the checkpoint's config."""

LAYERS = "model.layers"
"""Where the decoder layers are, in all of them."""
