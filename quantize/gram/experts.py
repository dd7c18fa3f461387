"""Single experts of a layer, named as in checkpoints; transformers fuses them into 3D parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LEAST = 64
"""Least tokens per batch that an expert is calibrated on: if fewer are routed to it, evenly spaced others are added."""


class Expert(nn.Module):  # type: ignore[misc]
    """A gated MLP whose layers have the checkpoint's names."""

    def __init__(self, names: Sequence[str], hidden: int, inner: int, activation: nn.Module) -> None:
        super().__init__()
        self._order = tuple(names)
        gate, up, down = names
        self.add_module(gate, nn.Linear(hidden, inner, bias=False))
        self.add_module(up, nn.Linear(hidden, inner, bias=False))
        self.add_module(down, nn.Linear(inner, hidden, bias=False))
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        """[tokens, hidden] to the same."""
        gate, up, down = (self.get_submodule(name) for name in self._order)
        out: Tensor = down(self.activation(gate(hidden)) * up(hidden))
        return out


class Experts(nn.Module):  # type: ignore[misc]
    """Replaces transformers' fused experts. Padding goes to none of them.

    `real` [rows * tokens] says which tokens of the batch count, None: all. While `counting`, `routed` adds up the
    tokens sent to each expert, and every expert sees at least LEAST tokens of a batch.
    """

    def __init__(self, fused: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        count, twice, hidden = fused.gate_up_proj.shape
        for expert in range(count):
            self.add_module(str(expert), Expert(names, hidden, twice // 2, fused.act_fn))
        self.routed: list[int] = [0] * len(self._modules)
        self.real: Tensor | None = None
        self.counting = False

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """[tokens, hidden], with the experts of each token [tokens, k] and their weights, to the same shape."""
        out = torch.zeros_like(hidden)
        for number, expert in enumerate(self.children()):
            mine = index == number
            if self.real is not None:
                mine = mine & self.real.unsqueeze(1)
            token, place = torch.where(mine)
            if self.counting:
                self.routed[number] += len(token)
                if len(token) < LEAST:
                    expert(hidden[self._others(mine.any(1), LEAST - len(token))])
            if len(token):
                out.index_add_(0, token, (expert(hidden[token]) * weights[token, place, None]).to(out.dtype))
        return out

    def _others(self, mine: Tensor, wanted: int) -> Tensor:
        """Evenly spaced tokens that are real and weren't sent here, `wanted` of them or all."""
        free = torch.where(~mine if self.real is None else self.real & ~mine)[0]
        if len(free) <= wanted:
            return free
        return free[torch.linspace(0, len(free) - 1, wanted, device=free.device).long()]


def unfuse(layer: nn.Module, block: str, names: Sequence[str]) -> Experts | None:
    """Replace fused experts by single ones, under the checkpoint's name of the block; None if there are none."""
    mlp = layer.get_submodule("mlp")
    fused = mlp._modules.get("experts")
    if fused is None:
        return None
    experts = mlp.experts = Experts(fused, names)
    if block != "mlp":
        # forward reads `self.mlp`; names of tensors come from _modules.
        layer._modules[block] = layer._modules.pop("mlp")
        layer.__dict__["mlp"] = mlp
    return experts
