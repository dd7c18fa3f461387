"""A checkup of a checkpoint folder: every kind of finding, from headers, JSON files and samples of tensors.

Pure but for reading: nothing is loaded into a model, no engine is needed, and a checkpoint of any size takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from qpack.core.problems import Problem, worst_first
from quantize.doctor import checkpoint as checkpoints
from quantize.doctor import config as meaning
from quantize.doctor import (
    config_against_tensors,
    config_groups,
    files,
    layers,
    quantization_config,
    scales,
    shapes,
    source_tensors,
    values,
    vllm_releases,
    weights,
)
from quantize.doctor.checkpoint import Checkpoint, Layer

# Bytes read per tensor without --whole: 64 blocks, evenly spread.
SAMPLE = 1 << 18


@dataclass(frozen=True)
class Checkup:
    """The checkpoint and its problems. `sampled`: large tensors were read in part."""

    checkpoint: Checkpoint
    method: str | None
    quantized: int
    linear: int
    sampled: bool
    findings: tuple[Problem, ...]

    @property
    def sound(self) -> bool:
        """Whether no problem is an error."""
        return not any(finding.severity == "error" for finding in self.findings)


def examine(
    folder: Path,
    *,
    against: Path | None = None,
    vllm: Version | None = None,
    dtype: str | None = None,
    whole: bool = False,
) -> Checkup:
    """Look at a checkpoint; with `against` also at the model that it was made from, with `vllm` as that release would.

    `dtype` is what it is to be served in. `whole` reads every scale instead of a sample. Worst findings first.
    """
    sample = 0 if whole else SAMPLE
    checkpoint, found = checkpoints.read(folder, sample)
    model = checkpoints.read(against, sample)[0] if against else None
    claimed = quantization_config.read(checkpoint)
    found += files.check(checkpoint, model)
    found += meaning.check(checkpoint, model)
    found += config_against_tensors.check(checkpoint)
    found += vllm_releases.check(checkpoint, claimed, vllm, dtype)
    found += config_groups.check(checkpoint, claimed)
    stored = layers.check(checkpoint, claimed)
    stored += shapes.check(checkpoint, claimed)
    stored += values.check(checkpoint, claimed)
    stored += scales.check(checkpoint, claimed)
    stored += source_tensors.check(checkpoint, claimed, model)
    if not any(finding.severity == "error" for finding in stored):
        # Tensors of other shapes can't be unpacked.
        stored += weights.check(checkpoint, claimed, model, whole=whole)
    found += stored
    return Checkup(
        checkpoint=checkpoint,
        method=claimed.method if claimed else None,
        quantized=sum(layer.quantized for layer in checkpoint.layers.values()),
        linear=sum(layer.linear for layer in checkpoint.layers.values()),
        sampled=not whole and any(_long(checkpoint, layer) for layer in checkpoint.layers.values() if layer.quantized),
        findings=worst_first(found),
    )


def _long(checkpoint: Checkpoint, layer: Layer) -> bool:
    """Whether the layer's scales are larger than the sample of a tensor."""
    return any(
        checkpoint.tensors[tensor.name].size > SAMPLE
        for part, tensor in layer.parts.items()
        if "scale" in part or "zero" in part
    )
