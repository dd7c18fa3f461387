"""Models that can't be released whatever the scheme: vLLM doesn't serve them, or they generate no text."""

from __future__ import annotations

import re
from collections.abc import Mapping

from qpack.core import checkpoint_files, model_shapes
from qpack.core.problems import Code, Location, Problem
from quantize.checkpoint import layer_names, layer_roles, model_config
from quantize.checkpoint.source import Source
from quantize.schemes import kernels, vllm_models
from quantize.schemes.schemes import AS_IT_IS

_NOT_SERVED = Code("model-not-served", "vLLM doesn't serve the model's architecture, or not on the target.")
_NO_GENERATION = Code("no-text-generation", "The model generates no text, or has an encoder: its evals can't run.")

_QUANTIZED_ALREADY = Code("quantized-already", "The source is quantized already.")

_UNPACKED = Code("unpacked", "The source is quantized already, and is unpacked first.")
_SOURCE = Location(key=("model", "source"))
_READ_BY_VLLM = "hf_quant_config.json"
_TOWERS = ("siglip_vision_model", "clip_vision_model")
_TOWER_OF_5 = re.compile(r"(^|\.)vision_tower\.(embeddings|encoder)\.")
# Names of the part of an expert that multiplies another one.
_GATES = {"gate_proj", "w1", "w3", "gate_up_proj", "linear_v"}


def quantized_already(source: Source, method: str) -> list[Problem]:
    """A source that is quantized, and isn't unpacked, can be released as it is; it is no start for another scheme."""
    if source.quantization is None or method == "none":
        return []
    what = f"is quantized already ({source.quantization})"
    hint = f"Start from the model that it was made from, or release it as it is: `method: none`, `scheme: {AS_IT_IS}`."
    return [Problem(_QUANTIZED_ALREADY, what, _SOURCE, hint)]


def unpacked(source: Source) -> list[Problem]:
    """What a source that is unpacked is compared with."""
    if not source.unpack:
        return []
    what = f"is quantized already: {source.unpack}. It is unpacked to bfloat16, and the artifact is compared with "
    what += "that, not with the model that it was made from"
    hint = f"To release it as it is: `method: none`, `scheme: {AS_IT_IS}`."
    return [Problem(_UNPACKED, what, _SOURCE, hint, severity="note")]


def check(source: Source, target: str, *, own_vllm: bool) -> list[Problem]:
    """By the architecture that the config names. `own_vllm`: the recipe names an environment of its own for vLLM, whose
    release and packages aren't known.
    """
    names = source.config.get("architectures")
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    kind = source.config.get("model_type")
    if source.config.get("is_encoder_decoder"):
        what = f"'{kind}' is an encoder-decoder, and qpack quantizes and measures decoders"
        return [Problem(_NO_GENERATION, what, _SOURCE, "Name a decoder that generates text.")]
    if names and all(map(vllm_models.pools, names)):
        what = f"{names[0]} gives embeddings or classes, and qpack measures generated text"
        return [Problem(_NO_GENERATION, what, _SOURCE, "Name a model for text generation (`...ForCausalLM`).")]
    if own_vllm:
        return []
    return (
        _biases(source, names)
        or _architecture(names)
        or _keys(source, names)
        or _sidecar(source)
        or _tower_names(source)
        or _latent_attention(source, target)
        or _on_cpus(source, target, names)
    )


def _architecture(names: list[str]) -> list[Problem]:
    dropped = next((name for name in names if name in vllm_models.DROPPED), None)
    if dropped:
        what = (
            f"vLLM {kernels.VLLM} doesn't serve {dropped}; {vllm_models.DROPPED[dropped]} was the last release that did"
        )
        hint = "Name an environment that has that release: `environments: {vllm: .../bin/python}`."
        return [Problem(_NOT_SERVED, what, _SOURCE, hint)]
    if names and all(name in vllm_models.NO_BACKEND for name in names):
        what = (
            f"vLLM {kernels.VLLM} has no class for {names[0]}, and its Transformers backend can't run transformers' own"
        )
        hint = "Name another model, or an environment whose vLLM has it: `environments: {vllm: .../bin/python}`."
        return [Problem(_NOT_SERVED, what, _SOURCE, hint)]
    other = next((name for name in names if name in vllm_models.OTHER_NAMES), None)
    if other:
        known = vllm_models.OTHER_NAMES[other]
        what = f"vLLM {kernels.VLLM} knows {other}, as transformers 5 saves it, by the name {known}"
        return [Problem(_NOT_SERVED, what, _SOURCE, f'Set `"architectures": ["{known}"]` in its config.json.')]
    return []


def _biases(source: Source, names: list[str]) -> list[Problem]:
    """Biases that vLLM's class has, and the checkpoint lacks."""
    wanted = next((vllm_models.BIASED[name] for name in names if name in vllm_models.BIASED), ())
    stored = tuple(tensor.name for tensor in source.tensors)
    lacking = [bias for bias in wanted if stored and not any(name.endswith(bias) for name in stored)]
    if not lacking:
        return []
    what = f"vLLM {kernels.VLLM}'s {names[0]} has biases that the checkpoint lacks ({', '.join(lacking)}), and would "
    what += "answer with whatever its memory held"
    hint = "Store biases of zeros under these names, or name a checkpoint that has them (`attention_bias: true`)."
    return [Problem(_NOT_SERVED, what, _SOURCE, hint)]


def _keys(source: Source, names: list[str]) -> list[Problem]:
    """Keys that vLLM's class reads, and transformers 5 leaves out when it saves."""
    for name in names:
        lacking = {key: value for key, value in vllm_models.READ_KEYS.get(name, {}).items() if key not in source.config}
        if lacking:
            keys = ", ".join(f"`{key}`" for key in lacking)
            what = f"config.json has no {keys}, which vLLM's {name} reads and transformers 5 doesn't write"
            values = "; ".join(f"{key}: {value}" for key, value in lacking.items())
            return [Problem(_NOT_SERVED, what, _SOURCE, f"Add to the source's config.json {values}.")]
    return []


def _sidecar(source: Source) -> list[Problem]:
    """A quantization config in a file of its own, where vLLM doesn't look by itself: it would read such layers as
    unquantized.
    """
    if source.kind != "folder" or source.path is None or source.quantization is None:
        return []
    if model_config.read_file(source.path / "config.json")[0].get("quantization_config") is not None:
        return []
    for name, method in checkpoint_files.SIDECARS.items():
        if name != _READ_BY_VLLM and method == source.quantization and (source.path / name).is_file():
            what = f"its quantization config is in {name} alone, which vLLM {kernels.VLLM} doesn't read by itself"
            hint = f'Put it into config.json, as `quantization_config`, with `"quant_method": "{method}"`.'
            return [Problem(_NOT_SERVED, what, _SOURCE, hint)]
    return []


def _tower_names(source: Source) -> list[Problem]:
    """Towers of SigLIP and CLIP as transformers 5 saves them: vLLM reads the names of published checkpoints."""
    vision = source.config.get("vision_config")
    if not isinstance(vision, Mapping) or vision.get("model_type") not in _TOWERS:
        return []
    found = [tensor.name for tensor in source.tensors if _TOWER_OF_5.search(tensor.name)]
    if not found or any(".vision_model." in tensor.name for tensor in source.tensors):
        return []
    what = f"vLLM {kernels.VLLM} reads `vision_tower.vision_model.`, and transformers 5 saved {found[0]}"
    return [Problem(_NOT_SERVED, what, _SOURCE, "Rename `vision_tower.` to `vision_tower.vision_model.` in its files.")]


def _latent_attention(source: Source, target: str) -> list[Problem]:
    config = model_shapes.language_model(source.config)
    rank, rope = config.get("kv_lora_rank"), config.get("qk_rope_head_dim")
    if config.get("model_type") not in vllm_models.MLA_TYPES or not isinstance(rank, int) or not isinstance(rope, int):
        return []
    widths = vllm_models.MLA_WIDTHS.get(target, vllm_models.MLA_WIDTHS_GPU)
    if rank + rope not in widths:
        allowed = " or ".join(map(str, widths))
        what = (
            f"kv_lora_rank and qk_rope_head_dim are {rank + rope} together, and vLLM's latent attention takes {allowed}"
        )
        return [Problem(_NOT_SERVED, what, _SOURCE, "Name a model of another shape.")]
    if target == "cpu" and config.get("index_topk"):
        what = "the model attends to chosen tokens (index_topk), and vLLM has no such attention on CPUs"
        return [Problem(_NOT_SERVED, what, _SOURCE, "Set serve.target to a GPU, and build on a machine that has one.")]
    return []


def _on_cpus(source: Source, target: str, names: list[str]) -> list[Problem]:
    if target != "cpu":
        return []
    hint = "Build it on a machine with a GPU."
    if any(each.role is layer_roles.Role.MAMBA for each in source.roles):
        # Tried with Jamba: its mixer fails at the first request.
        return [Problem(_NOT_SERVED, "it has Mamba-1 layers, and vLLM runs those on GPUs alone", _SOURCE, hint)]
    experts = {
        layer_names.last(name)
        for each in source.roles
        if each.role is layer_roles.Role.EXPERT
        for name in each.kind.names
    }
    if experts and not experts & _GATES:
        what = "its experts have no gate, and vLLM runs such experts on GPUs alone"
        return [Problem(_NOT_SERVED, what, _SOURCE, hint)]
    if any(name in vllm_models.NEED_TORCHVISION for name in names):
        what = "vLLM's module of the model imports torchvision, which its environment for CPUs lacks"
        hint += " Or name an environment that has it: `environments: {vllm: .../bin/python}`."
        return [Problem(_NOT_SERVED, what, _SOURCE, hint)]
    reads = any(each.role is layer_roles.Role.ENCODER for each in source.roles)
    if reads:
        what = "the model reads images or audio, and vLLM's environment for CPUs lacks torchvision, which prepares them"
        hint += " Or name an environment that has it: `environments: {vllm: .../bin/python}`."
        return [Problem(_NOT_SERVED, what, _SOURCE, hint)]
    return []
