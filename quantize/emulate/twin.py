"""A checkpoint that any vLLM serves in an artifact's place: its unpacked weights in bfloat16, all else as it is.

Kernels for weights alone multiply the same unpacked weights, so the twin's answers are the artifact's but for the order
of sums. Where a scheme quantizes activations too, vLLM loads a plugin from `plugin/`, which rounds what goes into each
layer and back (`workers/plugin/qpack_emulation.py`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from qpack.core.errors import EvaluateError
from qpack.core.frozen import Frozen
from qpack.core.problems import Code
from quantize.checkpoint import layer_names
from quantize.doctor import checkpoint as checkpoints
from quantize.doctor import decode
from quantize.doctor.checkpoint import Checkpoint, Layer
from quantize.doctor.quantization_config import CT_GLOBAL, Claims
from quantize.emulate import dense

_NO_TWIN = Code("no-twin", "A layer or a model can't be emulated.")

_HERE = Path(__file__).parent
PLUGIN = _HERE / "workers" / "plugin" / "qpack_emulation.py"


class Twin(Frozen):
    """What was unpacked: layers, and those of them whose activations are rounded too."""

    layers: int
    rounded_activations: int


def make(artifact: Path, out: Path, report: Callable[[int, int], None] = lambda *_: None) -> Twin:
    """Write `out/checkpoint`, and `out/plugin` where activations are rounded. Raises EvaluateError for a format that
    isn't looked into.
    """
    found, _ = checkpoints.read(artifact, sample=0)
    try:
        claims = dense.claims_of(found)
        count = dense.write(found, claims, out / "checkpoint", report)
    except dense.NotUnpacked as error:
        raise EvaluateError(_NO_TWIN, f"{artifact.name} can't be emulated: {error}") from None
    quantized = {name: layer for name, layer in found.layers.items() if layer.quantized}
    rounded = _activations(found, claims, quantized)
    if rounded:
        _plugin(out / "plugin", rounded)
    return Twin(layers=count, rounded_activations=sum(len(names) for names in rounded.values()))


def variables(out: Path) -> dict[str, str]:
    """Variables of a server that serves the twin in `out`; none where only weights are quantized."""
    plugin = out / "plugin"
    if not plugin.is_dir():
        return {}
    return {"PYTHONPATH": str(plugin), "QPACK_EMULATION": str(plugin / "activations.json")}


def _activations(found: Checkpoint, claims: Claims, layers: dict[str, Layer]) -> dict[str, dict[str, float | None]]:
    """Layers by how their inputs are rounded, each with the stored scale if there is one."""
    rounded: dict[str, dict[str, float | None]] = {}
    for name, layer in layers.items():
        claim = claims.of(layer)
        if claim is None or not claim.inputs:
            continue
        if layer_names.is_expert(name):
            raise EvaluateError(_NO_TWIN, f"{name} can't be emulated: inputs of experts are rounded inside of them")
        stored = layer.parts.get(claim.input_scale)
        scale = None
        if stored is not None and decode.is_float(stored.dtype) and stored.elements:
            scale = float(found.floats(stored.name)[0])
            # One convention for both: values are divided by it.
            scale = 1 / scale if claim.global_scale == CT_GLOBAL and scale else scale
        rounded.setdefault(claim.inputs, {})[name] = scale
    return rounded


def _plugin(folder: Path, rounded: dict[str, dict[str, float | None]]) -> None:
    """A distribution that vLLM finds by its entry point on PYTHONPATH."""
    told = folder / "qpack_emulation-1.dist-info"
    told.mkdir(parents=True)
    shutil.copyfile(PLUGIN, folder / PLUGIN.name)
    (folder / "activations.json").write_text(json.dumps(rounded))
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: qpack-emulation\nVersion: 1\n")
    (told / "entry_points.txt").write_text("[vllm.general_plugins]\nqpack_emulation = qpack_emulation:register\n")
