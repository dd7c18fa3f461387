"""The job of the worker that copies; qpack and the worker both import it (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """The folder, and how many linear layers are in it."""

    checkpoint: str
    linear_layers: int
