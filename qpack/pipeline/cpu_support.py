"""Whether this machine's CPU can serve a scheme."""

from __future__ import annotations

from qpack.core.problems import Problem
from qpack.runtime import hardware
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Request
from quantize.preflight import preflight, stored
from quantize.schemes.schemes import AS_IT_IS


def lacking(request: Request, source: Source) -> Problem | None:
    """Why this CPU can't serve the artifact, at the recipe's key; None where it can, and where a GPU is to serve it. A
    quantized source that is released as it is needs what its own schemes need.
    """
    found = stored.schemes(source.config) if request.scheme == AS_IT_IS else ()
    return preflight.lacking(stored.as_stored(request, found), avx512=hardware.has_avx512())


def release_lacking(request: Request) -> Problem | None:
    """The same for a release, of which `request` has the schemes that it is stored in. One that was judged by its twin
    may have no kernel on the hardware that served the twin.
    """
    found = preflight.without_kernel(request, "cpu") if request.target == "cpu" else None
    return found or preflight.lacking(request, avx512=hardware.has_avx512())


def needs_avx512(request: Request) -> bool:
    """Whether an x86 needs AVX-512 to serve the artifact."""
    return preflight.lacking(request, avx512=False) is not None
