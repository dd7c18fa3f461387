"""NVFP4's global scales, which layers share with those that servers join them with.

compressed-tensors divides by a global scale (448 x 6 / the largest weight), Model-Optimizer multiplies by it (the
largest weight / 448 / 6). Servers join q, k and v (gate and up), and take one global scale for all of them
(`process_weights_after_loading` in vLLM's compressed_tensors_w4a4_nvfp4.py and modelopt.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from qpack.core.problems import Code, Problem, named
from quantize.checkpoint import layer_names
from quantize.doctor.checkpoint import Checkpoint
from quantize.doctor.quantization_config import CT_GLOBAL, Claim, Claims

_UNEQUAL = Code(
    "global-scales-unequal", "Layers that servers join into one have different global scales, and servers take one."
)
INVERTED = Code(
    "scale-inverted",
    "A scale is stored inverted: compressed-tensors divides by global scales, Model-Optimizer multiplies.",
)

_AGAIN = "Quantize again: the layers that a server joins have to be calibrated together."
# Weights of real models lie below this by orders of magnitude; inverted global scales put them above 10^6.
_LARGEST = 1e5
_FP4_MAX, _FP8_MAX = 6.0, 448.0


def check(checkpoint: Checkpoint, claims: Claims | None) -> list[Problem]:
    """Global scales of joined layers, and inverted ones."""
    if claims is None or claims.unread:
        return []
    shared = {
        name: claim
        for name, layer in checkpoint.layers.items()
        if layer.quantized and (claim := claims.of(layer)) is not None and claim.global_scale in layer.parts
    }
    return [*_joined(checkpoint, shared), *_inverted(checkpoint, shared), *_inverted_inputs(checkpoint, shared)]


def _first(checkpoint: Checkpoint, layer: str, part: str) -> float | None:
    """The first value of a layer's tensor; None where there is none."""
    tensor = checkpoint.layers[layer].parts.get(part)
    if tensor is None or tensor.dtype not in ("F16", "BF16", "F32") or not tensor.elements:
        return None
    return float(checkpoint.floats(tensor.name)[0])


def _joined(checkpoint: Checkpoint, shared: Mapping[str, Claim]) -> list[Problem]:
    """Joined layers with global scales that differ."""
    worst: dict[tuple[str, tuple[str, ...]], float] = {}
    found: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for (_, members), names in layer_names.families(shared).items():
        # Of Model-Optimizer's input scales the largest is taken, which cuts off nothing.
        inputs = ("input_global_scale",) if shared[names[0]].global_scale == CT_GLOBAL else ()
        for part in (shared[names[0]].global_scale, *inputs):
            values = [value for name in names if (value := _first(checkpoint, name, part)) is not None and value > 0]
            if len(values) > 1 and max(values) > min(values) * (1 + 1e-6):
                found[part, members].append(names[0])
                worst[part, members] = max(worst.get((part, members), 1.0), max(values) / min(values))
    problems = []
    for (part, members), names in found.items():
        of_weights = not part.startswith("input")
        harm = "the weights of the others are off by that" if of_weights else "the others' activations may be cut off"
        what = (
            f"`{part}` of {', '.join(members)} differs by a factor of up to {worst[part, members]:.4g}; servers join"
            f" them and take one: {harm}"
        )
        problems.append(Problem(_UNEQUAL, what, named(names, part), _AGAIN, "error" if of_weights else "warning"))
    return problems


def _inverted(checkpoint: Checkpoint, shared: Mapping[str, Claim]) -> list[Problem]:
    """Global scales with which weights would be larger than any."""
    found = []
    for name, claim in shared.items():
        value = _first(checkpoint, name, claim.global_scale)
        scale = checkpoint.layers[name].parts.get("weight_scale")
        if not value or scale is None or scale.dtype != "F8_E4M3" or not scale.elements:
            continue  # another finding
        groups = float(np.nanmax(np.abs(checkpoint.floats(scale.name)), initial=0.0))
        if groups * _FP4_MAX * (1 / value if claim.global_scale == CT_GLOBAL else value) > _LARGEST:
            found.append((name, claim.global_scale))
    if not found:
        return []
    part = found[0][1]
    does = "divides by" if part == CT_GLOBAL else "multiplies by"
    what = f"`{part}` is the other convention's: this format {does} it, and weights would be larger than {_LARGEST:g}"
    return [Problem(INVERTED, what, named([name for name, _ in found], part), "Store its inverse.")]


def _inverted_inputs(checkpoint: Checkpoint, shared: Mapping[str, Claim]) -> list[Problem]:
    """Global scales of activations that most layers have as no model's activations are large. Some layers do have huge
    ones, so it is the middle that counts.
    """
    largest = {}
    for name, claim in shared.items():
        if (value := _first(checkpoint, name, claim.input_scale)) is not None and value > 0:
            largest[name] = _FP8_MAX * _FP4_MAX * (1 / value if claim.global_scale == CT_GLOBAL else value)
    if not largest or float(np.median([*largest.values()])) <= _LARGEST:
        return []
    part = shared[next(iter(largest))].input_scale
    what = f"`{part}` is the other convention's: most layers' activations would go up to more than {_LARGEST:g}"
    return [Problem(INVERTED, what, named([*largest], part), "Store its inverse.")]
