"""What a build needs of memory and disk, before it starts: each figure with its basis, from shapes alone.

A build records the estimate beside what it measured, so that the error of these figures is known
(`Quantized.expected_...`).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qpack import memory
from qpack.estimate import artifact_bytes
from qpack.plan import Plan
from quantize import anatomy
from quantize.kinds import Kind
from quantize.source import Source

# Measured: peak resident set of a process that imports llm-compressor 0.14.0.1 with torch 2.13 and does nothing.
_LIBRARIES = 478_736_384
_MIB = 2**20


@dataclass(frozen=True)
class Need:
    """`bytes` of `what`, and what the figure rests on. `have` is what this machine has; None when that isn't known."""

    what: str
    bytes: int
    basis: str
    have: int | None = None

    @property
    def short(self) -> bool:
        """Whether this machine has less."""
        return self.have is not None and self.have < self.bytes


def free_disk(folder: Path) -> int:
    """Bytes free where `folder` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def needs(plan: Plan, free_disk: int | None = None) -> list[Need]:
    """Everything that can be told from headers; nothing for a model that can't be reached."""
    artifact = artifact_bytes(plan)
    if artifact is None or not plan.source.tensors:
        return []
    quantizing = () if plan.request.method == "none" else (_quantize(plan),)
    return [*quantizing, *_serve(plan, artifact), _disk(plan, artifact, free_disk)]


def expected(plan: Plan) -> dict[str, int | None]:
    """What a build records beside what it measures: the fields `expected_...` of `Quantized`."""
    known = plan.source.tensors and plan.request.method != "none"
    return {
        "expected_peak_memory_bytes": _quantize(plan).bytes if known and plan.target == "cpu" else None,
        "expected_weights_bytes": artifact_bytes(plan),
    }


def _loaded(plan: Plan) -> int:
    """Bytes of the source's weights in 16 bits: GGUF and float32 sources are served so too."""
    return plan.source.parameters * 2


def _quantize(plan: Plan) -> Need:
    ask = plan.recipe.calibration
    return quantizing(plan, plan.source, ask.samples if ask else 0, ask.max_length if ask else 0)


def quantizing(plan: Plan, source: Source, rows: int, length: int) -> Need:
    """Memory that the plan's engine takes for `source` (the plan's own, or a part of it) with `rows` of `length`."""
    weights = source.parameters * 2
    parts = [f"weights in 16 bits {weights / _MIB:,.0f} MiB"]
    total = weights + _LIBRARIES
    layers, _ = source.split(plan.request.ignore)
    if rows and layers:
        # Each row's states before and after a block are kept, in 16 bits.
        states = 2 * 2 * rows * length * _width(source)
        parts.append(f"states of {rows} x {length} tokens {states / _MIB:,.0f} MiB")
        total += states
        if plan.request.method in ("gptq", "smoothquant"):
            hessians = 4 * _largest_block(layers)
            parts.append(f"Hessians of one block {hessians / _MIB:,.0f} MiB")
            total += hessians
    parts.append(f"libraries {_LIBRARIES / _MIB:,.0f} MiB (measured)")
    have = memory.limit().bytes if plan.target == "cpu" else None
    return Need("memory to quantize", total, ", ".join(parts), have)


def _width(source: Source) -> int:
    """The hidden size: that of the config, else the input of the first attention layer."""
    inner = source.config.get("text_config")
    size = (inner if isinstance(inner, dict) else source.config).get("hidden_size")
    if isinstance(size, int):
        return size
    return min(kind.shape[1] for kind in source.kinds)


def _largest_block(layers: Sequence[Kind]) -> int:
    """Sum of the squared input channels of the layers of one block: what GPTQ's Hessians hold."""
    blocks: dict[int | None, int] = {}
    for kind in layers:
        for name in kind.names:
            number = anatomy.layer_number(name)
            blocks[number] = blocks.get(number, 0) + kind.shape[1] ** 2
    return max(blocks.values())


def _serve(plan: Plan, artifact: int) -> list[Need]:
    serve = plan.recipe.serve
    cache = int(serve.kv_cache_gib * 2**30)
    have = plan.hardware.accelerator_memory_bytes if plan.target != "cpu" and plan.hardware.accelerators else None
    if plan.target == "cpu":
        have = memory.limit().bytes
    each = f" on each of {serve.tensor_parallel} GPUs" if serve.tensor_parallel > 1 else ""
    found = []
    for who, weights in (("baseline", _loaded(plan)), ("artifact", artifact)):
        share = weights // serve.tensor_parallel
        basis = f"weights {share / _MIB:,.0f} MiB, KV cache {cache / _MIB:,.0f} MiB{each}; the server comes on top"
        found.append(Need(f"memory to serve the {who}", share + cache, basis, have))
    return found


def _disk(plan: Plan, artifact: int, free: int | None) -> Need:
    """The store keeps what isn't a link; the registry keeps a copy."""
    fetched = 0 if plan.source.kind == "folder" else _loaded(plan)
    parts = [f"artifact {artifact / _MIB:,.0f} MiB in the store and in the registry"]
    if fetched:
        parts.insert(0, f"source {fetched / _MIB:,.0f} MiB")
    return Need("disk", fetched + 2 * artifact, ", ".join(parts), free)
