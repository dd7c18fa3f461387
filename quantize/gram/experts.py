"""Single experts of a layer, named as in checkpoints; transformers fuses them into 3D parameters."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .names import Unsupported

LEAST = 64
"""Least tokens per batch that an expert is calibrated on: if fewer are routed to it, evenly spaced others are added."""


FUSED = ("gate_up_proj", "up_proj", "down_proj")
"""Names of fused tensors in transformers: one matrix per expert, or two."""
_KNOWN = ({"gate_up_proj", "down_proj"}, {"up_proj", "down_proj"})


class Expert(nn.Module):  # type: ignore[misc]
    """An MLP whose layers have the checkpoint's names: gate (in a gated one), up and down."""

    def __init__(self, names: Sequence[str], hidden: int, inner: int, activation: nn.Module) -> None:
        super().__init__()
        self._order = tuple(names)
        for name in names[:-1]:
            self.add_module(name, nn.Linear(hidden, inner, bias=False))
        self.add_module(names[-1], nn.Linear(inner, hidden, bias=False))
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        """[tokens, hidden] to the same."""
        *before, down = (self.get_submodule(name) for name in self._order)
        inner = self.activation(before[0](hidden))
        out: Tensor = down(inner * before[1](hidden) if before[1:] else inner)
        return out


class Experts(nn.Module):  # type: ignore[misc]
    """Replaces transformers' fused experts. Padding goes to none of them.

    `real` [rows * tokens] says which tokens of the batch count, None: all. While `counting`, `routed` adds up the
    tokens sent to each expert, and every expert sees at least LEAST tokens of a batch.
    """

    def __init__(self, fused: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.transposed = bool(getattr(fused, "is_transposed", False))
        self.order = tuple(names)
        count, hidden, inner = fused.down_proj.shape
        if self.transposed:
            hidden, inner = inner, hidden
        for expert in range(count):
            self.add_module(str(expert), Expert(names, hidden, inner, fused.act_fn))
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


def unfuse(layer: nn.Module, prefix: str, names: Mapping[str, Sequence[str]]) -> dict[str, Experts]:
    """Put single experts in the place of fused ones; by the name of the module. `names` are those of an expert's own
    layers in the checkpoint, by the full name of the module; without any, the usual ones. Raises Unsupported.
    """
    found = {}
    for name, module in list(layer.named_modules()):
        held = {key: parameter for key, parameter in module._parameters.items() if parameter is not None}
        if not any(parameter.dim() == 3 for parameter in held.values()) or "conv" in type(module).__name__.lower():
            continue
        full = f"{prefix}.{name}"
        own = type(module).__dict__.get("_apply_gate")
        plain = own is None or getattr(own, "__name__", "") == "_default_apply_gate"
        whole = full not in names and not getattr(module, "is_concatenated", True)
        if set(held) not in _KNOWN or not plain or whole or not _routes(module):
            what = f"{full} ({type(module).__name__}) holds all experts of a layer in one tensor"
            raise Unsupported(f"{what}, in a way that gram can't take apart")
        usual = ("gate_proj", "up_proj", "down_proj")[0 if "gate_up_proj" in held else 1 :]
        experts = Experts(module, names.get(full, usual))
        layer.set_submodule(name, experts)
        found[name] = experts
    return found


def _routes(fused: nn.Module) -> bool:
    """Whether it is called with hidden states, each token's experts, and their weights."""
    return len(inspect.signature(fused.forward).parameters) == 3


def split(fused: Tensor, experts: Experts, own: str) -> dict[str, Tensor]:
    """Each expert's matrices [out, in] of a fused tensor of FUSED, by their names below it."""
    *gates, up, down = experts.order
    found = {}
    for number, matrix in enumerate(fused):
        one = matrix.T if experts.transposed else matrix
        if own == "down_proj":
            found[f"{number}.{down}.weight"] = one.contiguous()
        elif own == "up_proj":
            found[f"{number}.{up}.weight"] = one.contiguous()
        else:
            (gate,), half = gates, one.shape[0] // 2
            found[f"{number}.{gate}.weight"], found[f"{number}.{up}.weight"] = (
                one[:half].contiguous(),
                one[half:].contiguous(),
            )
    return found
