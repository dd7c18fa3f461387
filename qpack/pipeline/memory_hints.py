"""What to turn in a recipe when a stage ran out of memory: its keys, where each stands, and what each is now."""

from __future__ import annotations

from qpack.core.errors import Problem
from qpack.pipeline.plan import Plan
from qpack.runtime.memory_limits import Place
from quantize.engines import catalog


def knobs(plan: Plan, stage: str, place: Place) -> tuple[Problem, ...]:
    """The keys that have a say in how much memory of `place` the stage takes, those that cost least quality first."""
    if stage == "fetch":
        source = plan.loaded.problem(
            "a GGUF is turned into a whole model in memory.", "model", "source", hint="A safetensors checkpoint isn't."
        )
        return (source,) if plan.source.kind == "gguf" else ()
    if stage not in ("quantize", "rehearse"):
        return ()
    return (*_offload(plan, place), *_calibration(plan))


def after(plan: Plan, stage: str = "quantize") -> str:
    """Where a quantization that was ended begins the next time; nothing for other stages, which are short."""
    if stage != "quantize":
        return ""
    name = plan.engine.NAME
    if plan.engine.RESUMABLE:
        return f"{name} keeps finished layers; quantization resumes"
    return f"{name} keeps no finished layers; quantization restarts"


def _calibration(plan: Plan) -> list[Problem]:
    ask = plan.recipe.calibration
    if ask is None:
        return []
    # Where the value is a default, the place is that of `calibration`.
    samples = plan.loaded.problem(
        f"{ask.samples} rows: what each leaves behind a layer is kept for the next one.",
        *("calibration", "samples"),
        hint=f"Fewer take less: {max(1, ask.samples // 2)}.",
    )
    length = plan.loaded.problem(
        f"rows of up to {ask.max_length} tokens go through a layer whole.",
        *("calibration", "max_length"),
        hint=f"Shorter ones take less: {max(ask.min_length, ask.max_length // 2)}.",
    )
    return [samples, length]


def _offload(plan: Plan, place: Place) -> list[Problem]:
    """Another engine that reads layers from the disk in turn; on a GPU every engine does, from the host's memory."""
    engine, request = plan.engine, plan.request
    # Rounding alone holds one file of the checkpoint already.
    if engine.LAYERWISE or place == "gpu" or request.method == "rtn":
        return []
    what = f"{engine.NAME} holds all layers in memory."
    for name, other in catalog.ENGINES.items():
        able = other.LAYERWISE and catalog.choose(name, request.method, request.scheme, plan.target, request.format)[0]
        if able and not other.check(request, plan.source):
            hint = f"{name} holds one layer, and reads each from the disk in turn: `engine: {name}`."
            return [plan.loaded.problem(what, "quantize", "engine", hint=hint)]
    return []
