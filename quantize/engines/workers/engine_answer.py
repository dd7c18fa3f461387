"""What every engine's worker answers; qpack and the workers both import it (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """What quantizing took. The artifact itself is in the job's folder, in `checkpoint/`.

    `linear_layers` counts all, quantized or not. `peak_memory_bytes` is of the allocator on a GPU, else the process's
    peak resident set. `phases` are seconds by the name of a phase, where the engine measures them.
    """

    engine_version: str
    quantized_layers: int
    linear_layers: int
    seconds: float
    peak_memory_bytes: int
    phases: dict[str, float] = field(default_factory=dict)
