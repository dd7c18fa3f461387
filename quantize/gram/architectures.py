"""Where the norms and linear layers of a decoder layer sit: which share an input, and what can absorb its scale.

A run observes this on the model itself (`observe`). The table is read off transformers' modelling files: the doctor
judges artifacts by it without running them, and a test holds what is observed against it. Pure data and functions on
names, without torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """Linear layers that read one input, and the module before it that can divide that input by a scale.

    `absorber` is a norm (its weight is divided, or 1 + weight where `offset`) or a linear layer (its last rows are);
    empty: nothing can. `heads`: the input is attention's output, whose channels repeat the absorber's rows for every
    query head of a key-value head. `routed`: only the tokens that a router sent here come in. `rows`, where a site was
    observed: the absorber's row that is a factor of each channel of the input.
    """

    name: str
    readers: tuple[str, ...]
    absorber: str = ""
    norm: bool = False
    heads: bool = False
    offset: bool = False
    routed: bool = False
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Architecture:
    """A decoder layer's `sites`; `experts` names the block that holds them and its experts' gate, up and down layers.

    A site whose readers a layer lacks (a dense MLP where the layer has experts) isn't there in that layer.
    """

    sites: tuple[Site, ...]
    experts: tuple[str, str, str, str] | None = None


def _decoder(before_mlp: str = "post_attention_layernorm", *, offset: bool = False) -> tuple[Site, ...]:
    return (
        Site(
            "qkv",
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "input_layernorm",
            norm=True,
            offset=offset,
        ),
        Site("o", ("self_attn.o_proj",), "self_attn.v_proj", heads=True),
        Site("gate_up", ("mlp.gate_proj", "mlp.up_proj"), before_mlp, norm=True, offset=offset),
        Site("down", ("mlp.down_proj",), "mlp.up_proj"),
    )


# The norm before experts also feeds their router and the shared expert's gate, which nothing may change.
_SHARED = (
    Site("shared_gate_up", ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj")),
    Site("shared_down", ("mlp.shared_expert.down_proj",), "mlp.shared_expert.up_proj"),
)
_LLAMA = Architecture(_decoder())
_GEMMA2 = Architecture(_decoder("pre_feedforward_layernorm", offset=True))
_QWEN_MOE = Architecture((*_decoder(), *_SHARED), ("mlp", "gate_proj", "up_proj", "down_proj"))

ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": Architecture(_decoder(offset=True)),
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "phi3": Architecture(
        (
            Site("qkv", ("self_attn.qkv_proj",), "input_layernorm", norm=True),
            Site("o", ("self_attn.o_proj",), "self_attn.qkv_proj", heads=True),
            Site("gate_up", ("mlp.gate_up_proj",), "post_attention_layernorm", norm=True),
            Site("down", ("mlp.down_proj",), "mlp.gate_up_proj"),
        )
    ),
    "mixtral": Architecture(_decoder(), ("block_sparse_moe", "w1", "w3", "w2")),
    "qwen2_moe": _QWEN_MOE,
    "qwen3_moe": _QWEN_MOE,
}
"""By the `model_type` of the checkpoint's config."""

ROUTER = re.compile(r"(^|\.)(gate|router|shared_expert_gate)$")


def sites_of(kind: str, linears: Collection[str]) -> tuple[Site, ...]:
    """Sites of a layer that has these linear layers (names below it, in order); by themselves if `kind` is unknown."""
    known = ARCHITECTURES.get(kind)
    if known is None:
        return tuple(Site(name, (name,)) for name in linears if not ROUTER.search(name))
    sites = [site for site in known.sites if all(reader in linears for reader in site.readers)]
    if known.experts is None:
        return tuple(sites)
    block, gate, up, down = known.experts
    for expert in sorted({int(found[1]) for name in linears if (found := re.search(r"\.experts\.(\d+)\.", name))}):
        stem = f"{block}.experts.{expert}"
        sites += [
            Site(f"expert_{expert}_gate_up", (f"{stem}.{gate}", f"{stem}.{up}"), routed=True),
            Site(f"expert_{expert}_down", (f"{stem}.{down}",), f"{stem}.{up}", routed=True),
        ]
    return tuple(sites)
