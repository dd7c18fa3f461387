"""Whether this machine's CPU can serve a scheme."""

from __future__ import annotations

from qpack.core.problems import Problem
from qpack.runtime import hardware
from quantize.engines.protocol import Request
from quantize.preflight import preflight


def lacking(request: Request) -> Problem | None:
    """Why this CPU can't serve the artifact, at the recipe's key; None where it can, and where a GPU is to serve it."""
    return preflight.lacking(request, avx512=hardware.has_avx512())


def needs_avx512(request: Request) -> bool:
    """Whether an x86 needs AVX-512 to serve the artifact."""
    return preflight.lacking(request, avx512=False) is not None
