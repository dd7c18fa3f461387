"""Judging an artifact without a kernel: whether its twin is served in its place, why, and the twin itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qpack.core.problems import Code, Location, Problem
from qpack.core.records import Emulated
from qpack.core.store import key_of
from qpack.pipeline.stages.quantize import QUANTIZED
from quantize.checkpoint import layer_names
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Request
from quantize.preflight import stored
from quantize.preflight.targets import Served
from quantize.schemes.schemes import SCHEMES

if TYPE_CHECKING:
    from qpack.pipeline.closure import Reader
    from qpack.pipeline.planned import Plan
    from qpack.pipeline.state import Build
    from quantize.emulate import twin

Mode = Literal["never", "when-needed", "always"]
CODE = {"twin": ("quantize.emulate.twin",)}

_NOT_EMULATED = Code("not-emulated", "A part of the artifact that no 16-bit twin can stand for.")


@dataclass(frozen=True)
class Aim:
    """`emulated` says why the artifact's twin is served here; None where the artifact itself is. `target` is the
    hardware that the artifact is for.
    """

    target: str
    emulated: str | None = None


def mode_of(asked: Mode, request: Request, source: Source) -> Mode:
    """The recipe's mode; never where there is nothing to unpack: a source in 16 bits that is released as it is, or in a
    format that isn't looked into.
    """
    return "never" if request.method == "none" and not stored.own(request, source) else asked


def aim(mode: Mode, target: str, here: str, lacks: Problem | None, kernels: Sequence[Served]) -> Aim:
    """What the artifact is for, and whether it is emulated here. `target` is the recipe's, `here` this machine's;
    `lacks` is what its CPU lacks (`cpu_support`). An artifact without a kernel here, for which the recipe names no
    other hardware, is for the oldest that has one; where none has, for the oldest that lacks one for its shapes alone.
    """
    if mode == "never":
        return Aim(target)
    by_target = {each.target: each for each in kernels}
    why = by_target[here].why
    if not why and here == "cpu" and lacks is not None:
        return Aim(target, lacks.message)
    if not why:
        return Aim(target, "the recipe asks for it" if mode == "always" else None)
    if target == here:
        able = [each.target for each in kernels if each.kernels] or [one.target for one in kernels if one.only_shapes]
        target = next(iter(able), target)
    # What follows says what to use instead.
    return Aim(target, f"vLLM can't serve it on {here}: {why.partition(';')[0]}")


def problems(request: Request, source: Source) -> list[Problem]:
    """What a twin can't stand for, at the recipe's keys."""
    found = []
    if request.kv_cache is not None:
        what, at = "an FP8 KV cache isn't emulated", ("quantize", "kv_cache")
        found.append(Problem(_NOT_EMULATED, what, Location(key=at), "Remove the key, or set evaluate.emulate: never."))
    if request.method == "online":
        what = "weights that vLLM quantizes as it loads aren't emulated: there are no stored ones to unpack"
        hint = "Use `method: rtn`, which rounds them ahead, or measure on hardware that has the kernel."
        found.append(Problem(_NOT_EMULATED, what, Location(key=("quantize", "method")), hint))
    for part in stored.parts(request, source):
        name = part.request.scheme
        experts = any(layer_names.is_expert(kind.name) for kind in part.layers)
        if experts and SCHEMES[name].activation_bits < 16:
            what = f"experts in {name} aren't emulated: their inputs are rounded inside of vLLM's kernels"
            hint = "Quantize their weights alone, or measure on hardware that has the kernel."
            found.append(Problem(_NOT_EMULATED, what, Location(key=("evaluate", "emulate")), hint))
    return found


def inputs(code: Reader) -> Mapping[str, Any]:
    """What evidence of a twin depends on beside the artifact."""
    return {"emulated": {"code": code.closure(CODE["twin"])}}


def of_baseline(plan: Plan) -> bool:
    """Whether the baseline is emulated too: it is the artifact, a quantized source that is released as it is."""
    return plan.emulated is not None and plan.request.method == "none"


def folder(build: Build) -> Path:
    """The twin's folder, from the store or unpacked now. Raises EvaluateError."""
    # numpy, and a plan needs none.
    from quantize.emulate import twin

    made = build.require(QUANTIZED)
    asked = {"stage": "twin", "after": {QUANTIZED.stage: made.key}, **build.plan.emulation_inputs}

    def make(out: Path) -> twin.Twin:
        build.console.report("unpacking the artifact into 16 bits, to be served in its place")
        return twin.make(made.folder / "checkpoint", out)

    return build.keep(twin.Twin, make, asked, key_of(asked)).folder


def record(build: Build) -> Emulated | None:
    """What stands for the artifact in its evidence; None where it was served itself."""
    why = build.plan.emulated
    if why is None:
        return None
    parts = stored.parts(build.plan.request, build.plan.source)
    rounded = any(SCHEMES[part.request.scheme].activation_bits < 16 for part in parts)
    how = "its weights unpacked to bfloat16"
    if rounded:
        how += ", inputs of its layers rounded as its kernels do"
    return Emulated(on=build.plan.hardware.target, how=how, why=why)
