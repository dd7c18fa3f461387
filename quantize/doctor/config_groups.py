"""Groups of a quantization config that name one layer twice, and the scales of the KV cache that it promises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from qpack.core.problems import Code, Location, Problem, named
from quantize.checkpoint import layer_names
from quantize.doctor import decode, quantization_config
from quantize.doctor.checkpoint import Checkpoint
from quantize.doctor.quantization_config import Claims

_TWO_GROUPS = Code("two-groups", "Two groups of the quantization config name the same layers.")
_CONTRADICTED = Code("configs-differ", "Two quantization configs of a checkpoint say different things of a layer.")
_CACHE_SCALE = Code("kv-cache-scale", "Scales of the FP8 KV cache are zero, not numbers, or absent.")

_GROUPS = Location("config.json", key=("quantization_config", "config_groups"))
# As compressed-tensors, ModelOpt and older checkpoints name them (vLLM 0.32, `maybe_remap_kv_scale_name`).
_SCALES = ("k_scale", "v_scale", "kv_scale")
_OUTPUTS = ("k_proj.output_scale", "v_proj.output_scale", "qkv_proj.output_scale")
_KEYS = ("k_proj", "qkv_proj", "query_key_value")


def check(checkpoint: Checkpoint, claims: Claims | None) -> list[Problem]:
    """Groups, and the cache; nothing of a checkpoint that isn't quantized."""
    if claims is None:
        return []
    return [*_groups(checkpoint, claims), *_cache(checkpoint), *_contradicted(checkpoint, claims)]


def _groups(checkpoint: Checkpoint, claims: Claims) -> Iterator[Problem]:
    """A target in two groups (the last one counts in vLLM, the first in transformers), and layers that two name."""
    told: set[str] = set()
    twice: list[str] = []
    for targets, _ in claims.groups:
        twice += [target for target in targets.parts if target in told]
        told |= set(targets.parts)
    if twice:
        what = f"two groups have the target {twice[0][:80]!r}: which of their schemes counts depends on the reader"
        yield Problem(_TWO_GROUPS, what, _GROUPS, "Give each group the layers that are stored so.")
        return
    layers = []
    for name, layer in checkpoint.layers.items():
        if layer.linear and not claims.left_alone(name):
            by_name = {claim for targets, claim in claims.groups if targets.match(name)}
            layers += [name] if len(by_name) > 1 else []
    if layers:
        what = "two groups with unequal schemes name it: the first counts, if a reader takes them in order"
        hint = "Make the targets exclude one another."
        yield Problem(_TWO_GROUPS, what, named(layers), hint, "warning")


def _contradicted(checkpoint: Checkpoint, claims: Claims) -> Iterator[Problem]:
    """A config in a file of its own (hf_quant_config.json) beside another one in config.json that says otherwise."""
    if not checkpoint.sidecar or checkpoint.quantization is checkpoint.sidecar:
        return
    other = quantization_config.read(replace(checkpoint, config={}))
    if other is None or other.unread or claims.unread:
        return
    apart = [name for name, layer in checkpoint.layers.items() if layer.linear and other.of(layer) != claims.of(layer)]
    if apart:
        what = "config.json says that it is stored otherwise than the file beside it says"
        hint = "vLLM reads config.json, and others the file beside it: make them agree."
        yield Problem(_CONTRADICTED, what, named(apart), hint, "warning")


def _cache(checkpoint: Checkpoint) -> Iterator[Problem]:
    quantization = checkpoint.quantization or {}
    inner = quantization.get("quantization")
    # Model-Optimizer's own file has it one level below.
    said = inner if isinstance(inner, Mapping) else quantization
    scheme = quantization.get("kv_cache_scheme")
    static = isinstance(scheme, Mapping) and scheme.get("dynamic") is not True and scheme.get("num_bits") == 8
    found = [n for n in checkpoint.tensors if layer_names.last(n) in _SCALES or n.endswith(_OUTPUTS)]
    bad = [name for name in found if not _positive(checkpoint, name)]
    if bad:
        what = "is zero or no positive number: keys and values are lost in the cache"
        yield Problem(_CACHE_SCALE, what, named(bad), "Calibrate the cache again, or remove kv_cache_scheme.")
    if not (static or str(said.get("kv_cache_quant_algo", "")).upper() == "FP8"):
        return
    have = {_layer(name) for name in found}
    lacking = sorted({_layer(name) for name in checkpoint.layers if layer_names.last(name) in _KEYS} - have)
    if lacking:
        what = "has no scale for the FP8 KV cache that the config promises: vLLM takes 1.0, which cuts off large values"
        yield Problem(_CACHE_SCALE, what, named(lacking), "Calibrate the cache, or remove kv_cache_scheme.", "warning")


def _layer(name: str) -> str:
    """The attention that a scale or a layer belongs to: `model.layers.0`."""
    number = layer_names.layer_number(name)
    stem = name.partition(f".{number}.")[0]
    return f"{stem}.{number}" if number is not None else name.rpartition(".")[0]


def _positive(checkpoint: Checkpoint, name: str) -> bool:
    tensor = checkpoint.tensors[name].tensor
    if not decode.is_float(tensor.dtype) or not tensor.elements:
        return True  # of another kind
    values = checkpoint.floats(name)
    return bool(np.isfinite(values).all() and (values > 0).all())
