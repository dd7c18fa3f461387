"""A model that was found and looked at, before anything was loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantize.headers import Tensor


@dataclass(frozen=True)
class Source:
    """A model that was found. `content` identifies its bytes; None where that is not known yet (then nothing can be
    reused).

    `kind`: folder, gguf or hub. `resolved` is the source with everything that could move pinned.
    """

    uri: str
    kind: str
    resolved: str
    path: Path | None
    content: str | None
    tensors: tuple[Tensor, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    license: str | None = None
    licence_file: Path | None = None
    unchecked: tuple[str, ...] = ()

    @property
    def linears(self) -> tuple[Tensor, ...]:
        """Weights of linear layers, shape [out, in]."""
        return tuple(tensor for tensor in self.tensors if tensor.is_linear)

    @property
    def parameters(self) -> int:
        """How many parameters the headers list."""
        return sum(tensor.elements for tensor in self.tensors)
