"""The vLLM kernels that would serve an artifact on each kind of hardware, or why none does."""

from __future__ import annotations

from dataclasses import dataclass

from quantize.checkpoint import layer_names
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Request
from quantize.preflight import preflight, stored
from quantize.schemes import kernels
from quantize.schemes.schemes import SCHEMES, TARGETS


@dataclass(frozen=True)
class Served:
    """The kernels of all quantized layers on one target; none, and `why`, if one of the layers can't be served.
    `only_shapes`: each scheme has a kernel there, which doesn't take the layers' shapes.
    """

    target: str
    kernels: tuple[str, ...]
    why: str = ""
    only_shapes: bool = False


def served(request: Request, source: Source, tensor_parallel: int) -> tuple[Served, ...]:
    """For each target, with layers shared by `tensor_parallel` GPUs (a CPU shares none)."""
    return tuple(_on(target, request, source, tensor_parallel if target != "cpu" else 1) for target in TARGETS)


def _on(target: str, request: Request, source: Source, gpus: int) -> Served:
    found: list[str] = []
    parts = stored.parts(request, source)
    for part in parts:
        scheme = SCHEMES[part.request.scheme]
        if target not in scheme.kernels:
            return Served(target, (), scheme.missing.get(target, f"vLLM has no kernel for {scheme.name} there"))
        experts = any(layer_names.is_expert(kind.name) for kind in part.layers)
        if experts and (why := kernels.for_experts(scheme.name, target)):
            return Served(target, (), why)
    for part in parts:
        scheme = SCHEMES[part.request.scheme]
        # Without headers only the scheme's own kernel is known.
        fits = [
            kernels.fit(scheme.name, part.request.group_size, shape, target)
            for shape in preflight.shapes(source, part.layers, gpus)
        ] or [kernels.Fit(scheme.kernels[target])]
        for fit in fits:
            if fit.kernel is None:
                return Served(target, (), fit.why, only_shapes=True)
            found.append(fit.kernel)
    return Served(target, tuple(dict.fromkeys(found)))


def plain(found: tuple[Served, ...]) -> list[str]:
    """As text: a line for all kernels, and one per target without one."""
    by_kernels: dict[tuple[str, ...], list[str]] = {}
    for each in found:
        if each.kernels:
            by_kernels.setdefault(each.kernels, []).append(each.target)
    lines = ["; ".join(f"{', '.join(names)} on {', '.join(targets)}" for names, targets in by_kernels.items())]
    return [*filter(None, lines), *(f"none on {each.target}: {each.why}" for each in found if not each.kernels)]
