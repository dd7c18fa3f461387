"""The memory that a running vLLM reports, and the smallest accelerator with enough.

Weights, peak activation and CUDA graphs are from vLLM's log (versions 0.26 to 0.33), the KV cache from its metrics or
its log. None is what a version doesn't report; only `smallest` is an estimate.
"""

from __future__ import annotations

import re

from evals.server import memory
from qpack.core.frozen import Frozen

_GIB = 2**30
_USAGE = re.compile(
    r"Actual usage is (?P<consumed>[\d.]+) GiB for [^,]+, (?P<activation>[\d.]+) GiB for peak activation"
)
_GRAPHS = re.compile(r"Graph capturing finished in .* took (?P<gib>-?[\d.]+) GiB")

# Decimal GB from the vendor's data sheets: a little less than the driver reports, so the estimate is safe.
_ACCELERATORS = (
    ("T4 16 GB", 16), ("L4 24 GB", 24), ("A100 40 GB", 40), ("L40S 48 GB", 48), ("H100 80 GB", 80),
    ("H200 141 GB", 141), ("B200 180 GB", 180),
)  # fmt: skip
_UTILIZATION = 0.92
"""The share of a GPU that vLLM uses by default (`--gpu-memory-utilization`)."""


class Footprint(Frozen):
    """A server's memory on one device, in bytes; None is what it doesn't report (a CPU has no graphs).

    `longest_context_tokens` is the longest single request that fits: the KV cache, or the server's limit.
    """

    weights_loaded_bytes: int | None
    activation_bytes: int | None
    graph_bytes: int | None
    kv_cache_bytes: int
    kv_cache_tokens: int
    longest_context_tokens: int
    resident_bytes: int | None


def read(log: str, metrics: str, *, resident_bytes: int | None, max_model_len: int) -> Footprint:
    """The footprint in `log` and `metrics`. Raises EvaluateError when neither has the KV cache."""
    cache = memory.kv_cache(log, metrics)
    usage, graphs = _USAGE.search(log), _GRAPHS.findall(log)
    return Footprint(
        weights_loaded_bytes=memory.weights_loaded_bytes(log),
        activation_bytes=round(float(usage["activation"]) * _GIB) if usage else None,
        graph_bytes=round(max(map(float, graphs)) * _GIB) if graphs else None,
        kv_cache_bytes=cache.bytes,
        kv_cache_tokens=cache.tokens,
        longest_context_tokens=min(cache.tokens, max_model_len),
        resident_bytes=resident_bytes,
    )


def smallest(footprint: Footprint, tokens: int) -> str | None:
    """The smallest accelerator that holds weights, activations, graphs and a KV cache of `tokens` tokens within vLLM's
    default share of its memory; None if the server didn't report them, or none is large enough.
    """
    parts = (footprint.weights_loaded_bytes, footprint.activation_bytes, footprint.graph_bytes)
    if footprint.weights_loaded_bytes is None:
        return None
    cache = footprint.kv_cache_bytes / footprint.kv_cache_tokens * tokens
    needed = sum(part or 0 for part in parts) + cache
    return next((name for name, gb in _ACCELERATORS if gb * 1e9 * _UTILIZATION >= needed), None)
