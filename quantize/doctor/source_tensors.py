"""Whether every tensor of the source is there, packed or not, with the source's shape."""

from __future__ import annotations

from collections.abc import Mapping

from qpack.core.problems import Code, Problem, named
from quantize.checkpoint import layer_names, layer_problems, layer_roles
from quantize.doctor.checkpoint import PARTS, Checkpoint, Layer
from quantize.doctor.quantization_config import Claims, plain_name

_MISSING_TENSOR = Code("missing-tensor", "A tensor of the source is missing in every form.")
_SHAPE = Code("shape-differs", "A tensor's shape differs from the source's.")

# Computed when a model is made; newer releases don't save them.
_BUFFERS = ("inv_freq", "masked_bias", "attn.bias", "position_ids")


def check(checkpoint: Checkpoint, claims: Claims | None, source: Checkpoint | None) -> list[Problem]:
    """Compare tensors by the source's names. A source in another format (GGUF) can't be compared."""
    if source is None or not source.tensors or any(layer.quantized for layer in source.layers.values()):
        return []
    tied = bool(source.config.get("tie_word_embeddings", source.text_config.get("tie_word_embeddings")))
    lost: list[str] = []
    extra: list[str] = []
    shaped: list[str] = []
    where = layer_roles.layout([span.tensor for span in source.tensors.values()], source.config)
    fused = _one_by_one(source)
    tensors = {plain_name(name): span.tensor for name, span in checkpoint.tensors.items()}
    layers = {plain_name(name): layer for name, layer in checkpoint.layers.items()}
    for full, span in source.tensors.items():
        name = plain_name(full)
        stem = name.rpartition(".")[0]
        layer = layers.get(stem)
        if name.endswith(_BUFFERS):
            continue
        if name in tensors:
            if tensors[name].shape != span.tensor.shape and not (layer and layer.quantized):
                shaped.append(name)
        elif layer is not None and layer.quantized and name.rpartition(".")[2] in PARTS:
            shape = _shape(checkpoint, layer, claims)
            if shape is not None and shape != span.tensor.shape:
                shaped.append(name)
        elif gone := _experts_lost(fused.get(full, ()), layers):
            lost += gone
        elif full not in fused and not (tied and stem.rpartition(".")[2] == "lm_head"):
            inside = where.inside(full)
            later = inside is not None and inside[0] >= where.layers
            # Engines drop layers for multi-token prediction, and models work without them.
            (extra if later or layer_names.is_mtp(name) else lost).append(name)
    findings = []
    if lost:
        what = "missing; the source has it"
        findings.append(Problem(_MISSING_TENSOR, what, named(lost), "Quantize again, or copy it."))
    if extra:
        findings.append(layer_problems.left_behind(named(extra)))
    if shaped:
        findings.append(
            Problem(_SHAPE, "another shape than the source's", named(shaped), "It was made from another model.")
        )
    return findings


def _one_by_one(source: Checkpoint) -> dict[str, tuple[str, ...]]:
    """The layers that a tensor of all experts stands for, by the tensor's name: engines save experts one by one."""
    found = layer_roles.fused_experts([span.tensor for span in source.tensors.values()], source.config)
    return {
        each.tensor.name: tuple(matrix.name.removesuffix(".weight") for matrix in each.matrices()) for each in found
    }


def _experts_lost(names: tuple[str, ...], layers: Mapping[str, Layer]) -> list[str]:
    return [name for name in names if plain_name(name) not in layers]


def _shape(checkpoint: Checkpoint, layer: Layer, claims: Claims | None) -> tuple[int, ...] | None:
    """The shape [out, in] before packing; None if unknown."""
    if "weight_shape" in layer.parts:
        return checkpoint.shape_of(layer.name)
    claim = None if claims is None or claims.unread else claims.of(layer)
    nibbles = layer.parts.get(claim.weight) if claim is not None and claim.form == "fp4" else None
    if nibbles is not None and len(nibbles.shape) == 2:
        return nibbles.shape[0], nibbles.shape[1] * 2
    packed = layer.parts.get("qweight")
    if packed is None or claim is None or len(packed.shape) != 2:
        return None
    if claim.form == "awq":
        return packed.shape[1] * 32 // claim.bits, packed.shape[0]
    return packed.shape[1], packed.shape[0] * 32 // claim.bits
