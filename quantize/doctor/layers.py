"""Whether each layer is stored as the config says: quantized or not, complete, and like the layers it is fused with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from qpack.core.problems import Code, Location, Problem, named
from quantize.checkpoint import layer_problems
from quantize.doctor.checkpoint import Checkpoint, Layer
from quantize.doctor.config import CONFIG
from quantize.doctor.quantization_config import Claim, Claims

_UNREAD = Code("quantization-config", "The quantization config can't be understood.")
_NOT_LOOKED_INTO = Code("not-looked-into", "qpack has no checks for layers of this method or format.")
_NOT_QUANTIZED = Code("not-quantized", "The config claims quantization, and no layer is quantized.")
_NO_QUANTIZATION_CONFIG = Code(
    "no-quantization-config", "Layers are quantized, and the config has no quantization section."
)
_STORED_PLAIN = Code("stored-plain", "The config lists a layer as quantized, and it isn't.")
_NOT_CLAIMED = Code("not-claimed", "A layer is quantized, and the config excludes it.")
_MISSING_PART = Code("missing-part", "A quantized layer lacks its scales, zero points or shape.")
_NO_HEAD = Code("no-head", "There is no lm_head, and embeddings aren't tied.")
_SOURCE = "Quantize again, save with the engine's own function, and keep all its files."


def check(checkpoint: Checkpoint, claims: Claims | None) -> list[Problem]:
    """Compare the config's claims with the stored tensors."""
    layers = checkpoint.layers
    quantized = [name for name, layer in layers.items() if layer.quantized]
    head = _head(checkpoint)
    if claims is None:
        return [*_silent(quantized), *head]
    if claims.unread:
        if claims.broken:
            hint = "Copy it from the config that the engine wrote."
            return [Problem(_UNREAD, claims.unread, CONFIG, hint), *head]
        return [Problem(_NOT_LOOKED_INTO, claims.unread, severity="note"), *head]
    if not quantized:
        what = f"the config says {claims.method}, but no layer is quantized: the unquantized model was saved"
        return [Problem(_NOT_QUANTIZED, what, CONFIG, _SOURCE)] if checkpoint.tensors else []
    return [
        *head,
        *_plain(layers.values(), claims, quantized),
        *_unclaimed(layers, claims, quantized),
        *_incomplete(layers, claims),
        *_joined(layers, claims),
    ]


def _silent(quantized: list[str]) -> list[Problem]:
    if not quantized:
        return []
    what = f"{len(quantized)} layers are quantized, but the config has no quantization_config"
    hint = "Copy `quantization_config` from the config that the engine wrote."
    return [Problem(_NO_QUANTIZATION_CONFIG, what, CONFIG, hint)]


def _plain(layers: Iterable[Layer], claims: Claims, quantized: list[str]) -> list[Problem]:
    """Layers that the config lists as quantized, and that aren't."""
    beside = {name.rpartition(".")[0] for name in quantized}
    found = []
    for layer in layers:
        if layer.quantized or not layer.linear or claims.excused(layer.name) or claims.of(layer) is None:
            continue
        # Where the server derives what isn't quantized from the file, only a whole block that is left alone is fine.
        if claims.derived and layer.name.rpartition(".")[0] not in beside:
            continue
        found.append(layer.name)
    if not found:
        return []
    what = "not quantized, but the config says it is"
    if claims.derived:
        hint = "Add them to the config's list of unquantized layers; not every server detects them from the file."
        return [Problem(_STORED_PLAIN, what, named(found), hint, "warning")]
    return [Problem(_STORED_PLAIN, what, named(found), "Add them to the config's `ignore`, or quantize them.")]


def _unclaimed(layers: Mapping[str, Layer], claims: Claims, quantized: list[str]) -> list[Problem]:
    """Quantized layers that the config excludes."""
    found = [name for name in quantized if claims.of(layers[name]) is None]
    if not found:
        return []
    what = "quantized, but the config says it isn't: servers can't load its tensors"
    return [Problem(_NOT_CLAIMED, what, named(found), "Remove them from `ignore`, or add them to the targets.")]


def _needed(claim: Claim, layer: Layer) -> set[str]:
    if claim.form == "awq":
        return {"qweight", "scales", "qzeros"}
    if claim.form == "gptq":
        return {"qweight", "scales", "qzeros"}
    parts = {claim.weight}
    parts |= {"weight_scale_inv"} if "weight_scale_inv" in layer.parts else {"weight_scale"}
    if not claim.symmetric:
        parts.add("weight_zero_point")
    if claim.form == "pack":
        parts.add("weight_shape")
    if claim.global_scale:
        parts.add(claim.global_scale)
    return parts | ({claim.input_scale} if claim.static_input else set())


def _incomplete(layers: Mapping[str, Layer], claims: Claims) -> list[Problem]:
    """A quantized layer without its scales, or with parts of another format."""
    missing: dict[str, list[str]] = defaultdict(list)
    for name, layer in layers.items():
        claim = claims.of(layer) if layer.quantized else None
        if claim is None:
            continue
        for part in _needed(claim, layer) - set(layer.parts):
            missing[part].append(name)
    return [
        Problem(_MISSING_PART, f"`{part}` is missing", named(names, part), _SOURCE)
        for part, names in sorted(missing.items())
    ]


def _joined(layers: Mapping[str, Layer], claims: Claims) -> list[Problem]:
    """Layers that a server fuses into one and that are stored differently."""
    stored = {name: claims.of(layer) if layer.quantized else None for name, layer in layers.items() if layer.linear}
    return [
        layer_problems.joined_unequal(members, named([family[0].rpartition(".")[0] for family in families]))
        for members, families in layer_problems.unequal(stored).items()
    ]


def _head(checkpoint: Checkpoint) -> list[Problem]:
    """A tied output layer, or one that is missing."""
    heads = [name for name in checkpoint.layers if name.rpartition(".")[2] == "lm_head"]
    quantized = [name for name in heads if checkpoint.layers[name].quantized]
    where = Location(name=heads[0]) if heads else Location()
    hint = "Add lm_head to `ignore` and quantize again."
    if tied := layer_problems.tied_head(checkpoint.config, quantized, where, hint):
        return tied
    classes = checkpoint.config.get("architectures")
    text = isinstance(classes, list) and any(str(name).endswith("ForCausalLM") for name in classes)
    if (
        text
        and layer_problems.is_tied(checkpoint.config) is False
        and not heads
        and not _other_head(checkpoint)
        and any("embed_tokens" in name for name in checkpoint.tensors)
    ):
        what = "there is no lm_head, and the config says embeddings aren't tied"
        return [Problem(_NO_HEAD, what, Location(name="lm_head"), "Set tie_word_embeddings to the source's value.")]
    return []


def _other_head(checkpoint: Checkpoint) -> bool:
    """Whether a tensor outside of the layers, and not the embedding, has a row for each word (DeepSeek V4's `head`)."""
    words = checkpoint.text_config.get("vocab_size")
    return any(
        len(span.tensor.shape) == 2 and span.tensor.shape[0] == words and "embed" not in name and ".layers." not in name
        for name, span in checkpoint.tensors.items()
    )
