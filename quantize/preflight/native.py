"""A quantized source as it is stored, served as a second baseline beside the unpacked one."""

from __future__ import annotations

from dataclasses import replace

from qpack.core.problems import Code, Location, Problem
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Request
from quantize.preflight import preflight
from quantize.schemes.schemes import AS_IT_IS

_NO_NATIVE = Code("no-native-baseline", "The source can't be measured as it is stored.")
_KEY = Location(key=("evaluate", "native_baseline"))


def check(stored: Source, source: Source, request: Request, target: str, tensor_parallel: int) -> list[Problem]:
    """Why `stored` is no second baseline where `source` is what it is after fetch. `target` is what it is served on."""
    if not source.unpack:
        what = "the source isn't unpacked, so that the baseline is the source as it is stored"
        return [Problem(_NO_NATIVE, what, _KEY, "Leave the key out.")]
    asked = replace(request, method="none", scheme=AS_IT_IS, group_size=None, overrides=(), kv_cache=None, budget=None)
    found = preflight.check(replace(asked, target=target), stored, target, tensor_parallel)
    hint = "Leave the key out, or build on a machine that can serve it."
    return [Problem(_NO_NATIVE, f"as it is stored: {problem.message}", _KEY, hint) for problem in found]
