"""What every engine's worker answers; qpack and the workers both import it (see qpack_protocol)."""

from __future__ import annotations

import resource
from dataclasses import dataclass, field
from typing import Any


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


def peak_memory_bytes(cuda: Any) -> int:
    """The peak so far: of the allocator of `torch.cuda` where it has a GPU, else of this process's resident set."""
    if cuda.is_available():
        return int(cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
