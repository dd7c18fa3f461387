"""A model without weights, and the inputs that its own forward pass gives to each decoder layer.

transformers' model builds the inputs of its layers (scaled embeddings, masks with sliding windows, rotary embeddings
by layer). It is run here with layers that only capture their inputs: so every layer, streamed alone, gets exactly
what it would get in the whole model, whatever the architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from .architectures import ARCHITECTURES, LAYERS, SCALELESS, Site, sites_of
from .experts import Experts, unfuse
from .products import quick


class Unsupported(ValueError):
    """The model can't be streamed. The message says why."""


class _Seen(Exception):
    """The last layer was reached."""


LayerInputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a layer's forward besides its hidden states."""


class Skeleton:
    """`layers` (on meta, below `prefix`), the `sites` of each, its `experts`, and `outside`: tensors before them."""

    def __init__(self, config: PretrainedConfig, method: str, device: torch.device) -> None:
        self.device = device
        self.kind = str(config.model_type)
        known = ARCHITECTURES.get(self.kind)
        self.known = known is not None
        if known is None and method not in SCALELESS:
            what = f"gram doesn't know where the norms of the architecture '{self.kind}' sit, and {method} scales them"
            raise Unsupported(f"{what}; it takes {' and '.join(SCALELESS)} there. It knows {', '.join(ARCHITECTURES)}")
        try:
            with torch.device("meta"):
                self.model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        except ValueError:
            # Soft-capped attention scores: only the eager implementation has them.
            try:
                with torch.device("meta"):
                    self.model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
            except ValueError as error:
                raise Unsupported(f"transformers has no causal model of '{self.kind}': {error}") from None
        self.model.eval()
        self.prefix = LAYERS if known else _prefix(self.model, config)
        self.base = self.model.get_submodule(self.prefix.rpartition(".")[0])
        self.layers: nn.ModuleList = self.model.get_submodule(self.prefix)
        self.experts: list[Experts | None] = [
            unfuse(layer, known.experts[0], known.experts[1:]) if known and known.experts else None
            for layer in self.layers
        ]
        self.sites: list[tuple[Site, ...]] = [self._sites(index) for index in range(len(self.layers))]
        self.outside = sorted(name for name in self.base.state_dict() if not name.startswith(self._below))
        self._layer_inputs: dict[int, list[LayerInputs]] = {}

    @property
    def _below(self) -> str:
        return self.prefix.rpartition(".")[2] + "."

    def full(self, name: str) -> str:
        """The checkpoint's name of a tensor that `outside` lists."""
        return f"{self.prefix.rpartition('.')[0]}.{name}".lstrip(".")

    def linears(self, index: int) -> list[str]:
        """Names below a layer of all modules with a matrix product, routers included."""
        found = []
        for name, module in self.layers[index].named_modules():
            weight = module._parameters.get("weight")
            if weight is not None and weight.dim() == 2:
                found.append(name)
        return found

    def _sites(self, index: int) -> tuple[Site, ...]:
        layer, name = self.layers[index], f"{self.prefix}.{index}"
        for inside, parameter in layer.named_parameters():
            if parameter.dim() == 3:
                raise Unsupported(f"{name}.{inside} holds several matrices in one (fused experts); gram unfuses those "
                                  f"of {', '.join(k for k, a in ARCHITECTURES.items() if a.experts)}")  # fmt: skip
        linears = [inside for inside, module in layer.named_modules() if isinstance(module, nn.Linear)]
        sites = sites_of(self.kind, linears)
        if not sites:
            raise Unsupported(f"{name} ({type(layer).__name__}) holds no linear layer that gram finds")
        return sites

    def load(self, read: Callable[[list[str]], dict[str, Tensor]]) -> None:
        """Load the weights before the layers, and compute the buffers that no checkpoint holds."""
        tensors = read([self.full(name) for name in self.outside])
        self.base.load_state_dict({name: tensors[self.full(name)] for name in self.outside}, assign=True, strict=False)
        for name, module in self.base.named_modules():
            if not name.startswith(self._below):
                self.materialize_buffers(module)

    def unload(self) -> None:
        """Free the weights before the layers."""
        self.base.to("meta")

    def materialize_buffers(self, module: nn.Module) -> None:
        """Compute a module's own buffers that no checkpoint holds."""
        lost = [name for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]
        if not lost:
            return
        if "RotaryEmbedding" in type(module).__name__:
            module._buffers.update(type(module)(config=self.model.config).to(self.device)._buffers)
            return
        for name in lost:
            buffer = module._buffers[name]
            assert buffer is not None
            module._buffers[name] = torch.empty_like(buffer, device=self.device)
        scale = getattr(module, "scalar_embed_scale", None)
        if scale is None or lost != ["embed_scale"]:
            raise Unsupported(f"{type(module).__name__} computes {', '.join(lost)} in a way that gram doesn't know")
        module._buffers["embed_scale"] = torch.tensor(scale, device=self.device)

    @torch.no_grad()
    def begin(self, ids: Tensor) -> Tensor:
        """Token ids [rows, tokens] to the first layer's input [rows, tokens, hidden]; captures that length's inputs."""
        if ids.shape[1] not in self._layer_inputs:
            # One row is enough: rows padded at their end have the same masks and positions.
            self._layer_inputs[ids.shape[1]] = self._captured(ids[:1])[1]
        return self._captured(ids)[0]

    def capture_inputs(self, ids: Tensor) -> None:
        """Capture the layers' inputs for that length, without computing activations."""
        if ids.shape[1] not in self._layer_inputs:
            self._layer_inputs[ids.shape[1]] = self._captured(ids[:1])[1]

    @torch.no_grad()
    def _captured(self, ids: Tensor) -> tuple[Tensor, list[LayerInputs]]:
        for tupled in (False, True):
            first: list[Tensor] = []
            inputs: list[LayerInputs] = []
            for index, layer in enumerate(self.layers):
                layer.forward = _Capture(first, inputs, tupled, last=index + 1 == len(self.layers))
            try:
                self.base(input_ids=ids, use_cache=False)
            except _Seen:
                return first[0], inputs
            except Exception as error:
                # A model that unpacks a layer's output needs a tuple.
                if tupled:
                    what = f"the forward pass of '{self.kind}' can't be followed layer by layer"
                    raise Unsupported(f"{what} ({type(error).__name__}: {error})") from error
            finally:
                for layer in self.layers:
                    del layer.forward
        raise Unsupported(f"the forward pass of '{self.kind}' doesn't go through the layers in {self.prefix}")

    def forward(
        self, index: int, hidden: Tensor, real: Tensor | None, weights: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """[rows, tokens, hidden] through a layer that has its weights. `real` [rows, tokens]: not padding.

        With `weights` (by name below the layer, in the place of its own) derivatives by them are kept where they are
        enabled, otherwise none are.
        """
        experts = self.experts[index]
        if experts is not None:
            experts.real = None if real is None else real.flatten()
        arguments, named = self._layer_inputs[hidden.shape[1]][index]
        with quick(hidden), torch.set_grad_enabled(weights is not None and torch.is_grad_enabled()):
            if weights is None:
                out = self.layers[index](hidden, *arguments, **named)
            else:
                out = torch.func.functional_call(self.layers[index], dict(weights), (hidden, *arguments), named)
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result


class _Capture:
    def __init__(self, first: list[Tensor], inputs: list[LayerInputs], tupled: bool, *, last: bool) -> None:
        self.first, self.inputs, self.tupled, self.last = first, inputs, tupled, last

    def __call__(self, hidden_states: Tensor, *arguments: Any, **named: Any) -> Any:
        if self.first and self.first[0].shape != hidden_states.shape:
            raise ValueError("a layer's output was taken apart")
        self.first.append(hidden_states)
        self.inputs.append((arguments, named))
        if self.last:
            raise _Seen
        return (hidden_states,) if self.tupled else hidden_states


def _prefix(model: nn.Module, config: PretrainedConfig) -> str:
    """The path of an unknown architecture's decoder layers: its one list with as many modules as it has layers."""
    count = getattr(config, "num_hidden_layers", None)
    found = [
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if getattr(config, "is_encoder_decoder", False) or len(found) != 1:
        places = ", ".join(found) or "none"
        raise Unsupported(f"'{config.model_type}' has no single list of {count} decoder layers (found: {places})")
    return found[0]
