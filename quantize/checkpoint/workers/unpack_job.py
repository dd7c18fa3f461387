"""Job and answer of the worker that unpacks a quantized checkpoint; qpack and the worker import them (see
qpack_protocol).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """The folder of a checkpoint with FP8 weights and `weight_scale_inv` per block."""

    checkpoint: str


@dataclass(frozen=True)
class Answer:
    """How many weights were unpacked."""

    unpacked: int
