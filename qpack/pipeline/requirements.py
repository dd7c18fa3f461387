"""What a build needs of memory and disk, before it starts: each figure with its basis, from shapes alone.

A build records the estimate beside what it measured, so that the error of these figures is known
(`Quantized.expected_...`).
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from qpack.core.errors import EnvironmentFailed
from qpack.pipeline import cpu_support, rates
from qpack.pipeline.planned import Plan
from qpack.runtime import memory_limits, platforms
from quantize.checkpoint.source import Source
from quantize.engines import memory
from quantize.preflight import sizes
from quantize.schemes.schemes import UNCHANGED
from registry.serving import parallel

_MIB = 2**20


@dataclass(frozen=True)
class Requirement:
    """`bytes` of `what`, and what the figure rests on. `have` is what this machine has; None when that isn't known."""

    what: str
    bytes: int
    basis: str
    have: int | None = None

    @property
    def short(self) -> bool:
        """Whether this machine has less."""
        return self.have is not None and self.have < self.bytes


def artifact_bytes(plan: Plan) -> int | None:
    """Bytes of the artifact's weights; None without headers (a hub that isn't reached)."""
    return sizes.weights_bytes(plan.source, plan.request) if plan.source.tensors else None


def free_disk(folder: Path) -> int:
    """Bytes free where `folder` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def required(plan: Plan, free_disk: int | None = None) -> list[Requirement]:
    """What headers allow to estimate; nothing for a model that can't be reached."""
    artifact = artifact_bytes(plan)
    if artifact is None or not plan.source.tensors:
        return []
    quantizing = () if plan.request.method in UNCHANGED else (_quantize(plan), *_quantize_gpu(plan))
    return [*quantizing, *_serve(plan), _disk(plan, artifact, free_disk)]


def check_cpu(plan: Plan) -> None:
    """Raise EnvironmentFailed when this CPU lacks what a scheme's kernel is made of: else the artifact's server would
    come up, and end at the first question. Called before a build, and again before that server.
    """
    if (lacks := cpu_support.lacking(plan.request, plan.source)) is not None:
        hint = "Use W8A8 or FP8_DYNAMIC, set `evaluate.emulate: when-needed`, or use a machine with AVX-512."
        if plan.request.method == "none":
            hint = "Set `evaluate.emulate: when-needed`, or use a machine with AVX-512."
        raise EnvironmentFailed(lacks.code, f"the artifact can't be served here: {lacks.message}", hint=hint)


def expected(plan: Plan) -> dict[str, int | None]:
    """What a build records beside what it measures: the fields `expected_...` of `Quantized`."""
    known = plan.source.tensors and plan.request.method not in UNCHANGED
    return {
        "expected_peak_memory_bytes": _quantize(plan).bytes if known and plan.target == "cpu" else None,
        "expected_weights_bytes": artifact_bytes(plan),
    }


def _loaded(plan: Plan) -> int:
    """Bytes of the source's weights in 16 bits: GGUF and float32 sources are served so too."""
    return plan.source.parameters * 2


def _quantize(plan: Plan) -> Requirement:
    ask = plan.recipe.calibration
    return quantizing(plan, plan.source, ask.samples if ask else 0, ask.max_length if ask else 0)


def quantizing(plan: Plan, source: Source, rows: int, length: int) -> Requirement:
    """Memory that the plan's engine takes for `source` (the plan's own, or a part of it) with `rows` of `length`."""
    artifact = sizes.weights_bytes(source, plan.request)
    parts = memory.parts(plan.engine, plan.request, source, artifact, rows, length)
    have = memory_limits.limit().bytes if plan.target == "cpu" else None
    basis = ", ".join(f"{what} {size / _MIB:,.0f} MiB" for what, size in parts)
    if plan.target != "cpu":
        basis += " on the host"
        if rates.quantize_kind(plan.engine.NAME, plan.request) not in rates.GPU_MEMORY:
            basis += "; GPU memory isn't estimated: nothing comparable was measured (`check --rehearse` measures it)"
    return Requirement("memory to quantize", sum(size for _, size in parts), basis, have)


def _quantize_gpu(plan: Plan) -> tuple[Requirement, ...]:
    """GPU memory that the engine takes, where it was measured with this method."""
    measured = rates.GPU_MEMORY.get(rates.quantize_kind(plan.engine.NAME, plan.request))
    if measured is None or plan.target == "cpu":
        return ()
    ask = plan.recipe.calibration
    tokens = ask.samples * ask.max_length if ask else 0
    layer, channels = memory.layer_and_channels(plan.request, plan.source)
    runs = "1 run" if measured.runs == 1 else f"{measured.runs} runs"
    basis = (
        f"{runs} of Llama 3 8B's shape, by the largest layer ({layer / _MIB:,.0f} MiB) and at most {tokens:,} tokens"
    )
    have = plan.hardware.accelerator_memory_bytes if plan.hardware.accelerators else None
    return (Requirement("GPU memory to quantize", measured.bytes(layer, tokens, channels), basis, have),)


def _serve(plan: Plan) -> list[Requirement]:
    serve = plan.recipe.serve
    cache = int(serve.kv_cache_gib * 2**30)
    have = plan.hardware.accelerator_memory_bytes if plan.target != "cpu" and plan.hardware.accelerators else None
    if plan.target == "cpu":
        have = memory_limits.limit().bytes
    gpus, held = plan.serving.devices, parallel.weights_share(plan.serving, plan.source.config)
    cache *= parallel.cache_share(plan.serving)
    each = f" on each of {gpus} GPUs" if gpus > 1 else ""
    found = []
    twin = sizes.unpacked_bytes(plan.source, plan.request) if plan.emulated else None
    artifact = twin or sizes.served_bytes(plan.source, plan.request)
    # A source that is released as it is, is the artifact.
    baseline = artifact if plan.request.method == "none" else _loaded(plan)
    for what, weights in (("memory to serve the baseline", baseline), ("memory to serve the artifact", artifact)):
        share = math.ceil(weights * held)
        basis = f"weights {share / _MIB:,.0f} MiB, KV cache {cache / _MIB:,.0f} MiB{each}, plus the server's own"
        found.append(Requirement(what, share + cache, basis, have))
    return found


def _disk(plan: Plan, artifact: int, free: int | None) -> Requirement:
    """The store keeps what isn't a link; the registry keeps a copy."""
    fetched = 0 if plan.source.kind == "folder" else _loaded(plan)
    parts = [f"artifact {artifact / _MIB:,.0f} MiB in the store and in the registry"]
    if fetched:
        parts.insert(0, f"source {fetched / _MIB:,.0f} MiB")
    twin = sizes.unpacked_bytes(plan.source, plan.request) if plan.emulated else 0
    if twin:
        parts.append(f"its 16-bit twin {twin / _MIB:,.0f} MiB")
    made = _environments(plan)
    if made:
        parts.append(f"environments to be made about {made / _MIB:,.0f} MiB")
    return Requirement("disk", fetched + 2 * artifact + twin + made, ", ".join(parts), free)


def _environments(plan: Plan) -> int:
    """About what the environments that aren't made yet take: their files, where those are known, else their wheels."""
    sizes_of = (platforms.size(e.spec.name, e.variant) for e in plan.environments.values() if not e.ready)
    return sum(size.installed or size.bytes for size in sizes_of if size is not None)
