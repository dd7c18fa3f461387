"""How large a model is, from headers and config: parameters, layers, experts, and what answers one token."""

from __future__ import annotations

from dataclasses import dataclass

from quantize.checkpoint import layer_names, layer_roles
from quantize.checkpoint.source import Source


@dataclass(frozen=True)
class ModelFacts:
    """`active_parameters` are those that answer one token: of experts, `active_experts` of `experts`. `draft_layers`
    predict further tokens, after the decoder's `layers`.
    """

    parameters: int
    active_parameters: int
    layers: int
    experts: int
    active_experts: int
    draft_layers: int


def of(source: Source) -> ModelFacts:
    """The facts of a source with headers."""
    tensors, config = source.tensors, source.config
    where = layer_roles.layout(tensors, config)
    active = min(layer_roles.count(config, layer_roles.ACTIVE), where.experts)
    inside = [t for t in tensors if layer_names.is_expert(t.name) or layer_roles.is_fused_experts(t, config)]
    idle = sum(t.elements for t in inside) * (where.experts - active) // where.experts if active else 0
    drafts = {number for t in tensors if (number := layer_names.mtp_number(t.name)) is not None}
    return ModelFacts(
        parameters=source.parameters,
        active_parameters=source.parameters - idle,
        layers=where.layers,
        experts=where.experts,
        active_experts=active,
        draft_layers=where.drafts or len(drafts),
    )
