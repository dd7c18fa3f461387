"""A model that was found and inspected before loading anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from qpack.core import model_shapes
from quantize.checkpoint import layer_roles
from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.layer_groups import Kind, kinds, split
from quantize.checkpoint.layer_roles import LayerRole
from quantize.checkpoint.model_config import ModelConfig


@dataclass(frozen=True)
class Source:
    """A model that was found. `content` identifies its bytes; None if not known yet (nothing can be reused then).

    `kind`: folder, gguf or hub. `resolved` is the source with revision and versions pinned.
    """

    uri: str
    kind: str
    resolved: str
    path: Path | None
    content: str | None
    tensors: tuple[Tensor, ...] = ()
    config: ModelConfig = field(default_factory=dict)
    license: str | None = None
    licence_file: Path | None = None
    unchecked: tuple[str, ...] = ()
    unpack: str = ""
    """What `fetch` unpacks it from; empty if it isn't quantized, or is taken as it is."""
    unpack_environment: str = ""
    """The environment whose worker unpacks it; empty where qpack itself does."""
    _splits: dict[tuple[str, ...], tuple[tuple[Kind, ...], tuple[Kind, ...]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def quantization(self) -> str | None:
        """The method that the source is quantized with already, as its config names it; None where it isn't."""
        found = self.config.get("quantization_config")
        found = model_shapes.language_model(self.config).get("quantization_config") if found is None else found
        if not isinstance(found, Mapping):
            return None
        return str(found.get("quant_method") or found.get("quant_algo") or "unnamed")[:40]

    @cached_property
    def linears(self) -> tuple[Tensor, ...]:
        """Weights of linear layers, shape [out, in]; experts that one tensor holds are listed one by one."""
        return layer_roles.linears(self.tensors, self.config)

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """Linear layers by kind."""
        return kinds(self.linears)

    @cached_property
    def roles(self) -> tuple[LayerRole, ...]:
        """What each linear layer is for."""
        return layer_roles.roles(self.tensors, self.config)

    def split(self, patterns: tuple[str, ...]) -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
        """Linear layers to quantize, and those that the patterns ignore. Cached."""
        if patterns not in self._splits:
            self._splits[patterns] = split(self.kinds, patterns)
        return self._splits[patterns]

    @cached_property
    def parameters(self) -> int:
        """The number of parameters in the headers."""
        return sum(tensor.elements for tensor in self.tensors)
