"""Whether each layer is stored as the config claims: quantized or not, whole, and like the layers it is joined with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from quantize.checkpoint import layer_names
from quantize.doctor.checkpoint import Checkpoint, Layer
from quantize.doctor.finding import Finding, some
from quantize.doctor.quantization_config import Claim, Claims

_SOURCE = "Quantize again with the engine's own save function, and keep all its files."


def check(checkpoint: Checkpoint, claims: Claims | None) -> list[Finding]:
    """Claims against what is stored. A checkpoint that isn't quantized, and says so, has no findings here."""
    layers = checkpoint.layers
    quantized = [name for name, layer in layers.items() if layer.quantized]
    head = _head(checkpoint)
    if claims is None:
        return [*_silent(quantized), *head]
    if claims.unread:
        if claims.broken:
            hint = "Copy it from the config that the engine wrote."
            return [Finding("error", "quantization-config", claims.unread, "config.json", hint), *head]
        return [Finding("note", "not-looked-into", claims.unread), *head]
    if not quantized:
        what = f"the config says {claims.method}, and no layer is stored quantized: it was saved as it was before"
        return [Finding("error", "not-quantized", what, "config.json", _SOURCE)] if checkpoint.tensors else []
    return [
        *head,
        *_plain(layers.values(), claims, quantized),
        *_unclaimed(layers, claims, quantized),
        *_incomplete(layers, claims),
        *_joined(layers, claims),
    ]


def _silent(quantized: list[str]) -> list[Finding]:
    if not quantized:
        return []
    what = f"{len(quantized)} layers are stored quantized, and the config has no quantization_config"
    hint = "Copy `quantization_config` from the config that the engine wrote."
    return [Finding("error", "no-quantization-config", what, "config.json", hint)]


def _plain(layers: Iterable[Layer], claims: Claims, quantized: list[str]) -> list[Finding]:
    """Claimed and not quantized."""
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
    what = f"{some(found)}: stored unquantized, and the config says quantized"
    if claims.derived:
        hint = "List them where the config names what isn't quantized; not every server looks at the file."
        return [Finding("warning", "stored-plain", what, found[0], hint)]
    return [Finding("error", "stored-plain", what, found[0], "Put them on the config's `ignore`, or quantize them.")]


def _unclaimed(layers: Mapping[str, Layer], claims: Claims, quantized: list[str]) -> list[Finding]:
    """Quantized and not claimed."""
    found = [name for name in quantized if claims.of(layers[name]) is None]
    if not found:
        return []
    what = f"{some(found)}: stored quantized, and the config says not: a server finds no place for its tensors"
    return [Finding("error", "not-claimed", what, found[0], "Take them off `ignore`, or name them as a target.")]


def _needed(claim: Claim, layer: Layer) -> set[str]:
    if claim.form == "awq":
        return {"qweight", "scales", "qzeros"}
    if claim.form == "gptq":
        return {"qweight", "scales", "qzeros"}
    parts = {"weight_packed" if claim.form == "pack" else "weight"}
    parts |= {"weight_scale_inv"} if "weight_scale_inv" in layer.parts else {"weight_scale"}
    if not claim.symmetric:
        parts.add("weight_zero_point")
    if claim.form == "pack":
        parts.add("weight_shape")
    return parts | ({"input_scale"} if claim.static_input else set())


def _incomplete(layers: Mapping[str, Layer], claims: Claims) -> list[Finding]:
    """A quantized layer without its scales, or with parts of another format."""
    missing: dict[str, list[str]] = defaultdict(list)
    for name, layer in layers.items():
        claim = claims.of(layer) if layer.quantized else None
        if claim is None:
            continue
        for part in _needed(claim, layer) - set(layer.parts):
            missing[part].append(name)
    return [
        Finding("error", "missing-part", f"{some(names)}: there is no `{part}`", f"{names[0]}.{part}", _SOURCE)
        for part, names in sorted(missing.items())
    ]


def _joined(layers: Mapping[str, Layer], claims: Claims) -> list[Finding]:
    """Layers that a server joins into one, stored in more than one way."""
    findings = []
    unequal: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for (stem, members), names in layer_names.families(name for name, layer in layers.items() if layer.linear).items():
        stored = {claims.of(layers[name]) if layers[name].quantized else None for name in names}
        if len(stored) > 1:
            unequal[members].append(stem)
    for members, stems in unequal.items():
        what = f"{some(stems)}: {', '.join(members)} are joined by the server, and are stored in different ways"
        findings.append(Finding("error", "joined-unequal", what, stems[0], "Quantize all of them alike, or none."))
    return findings


def _head(checkpoint: Checkpoint) -> list[Finding]:
    """The output layer and the embedding when they are one and the same tensor."""
    tied = checkpoint.config.get("tie_word_embeddings", checkpoint.text_config.get("tie_word_embeddings"))
    heads = [layer for name, layer in checkpoint.layers.items() if name.rpartition(".")[2] == "lm_head"]
    if tied and heads and heads[0].quantized:
        what = "lm_head is stored quantized, and tie_word_embeddings makes servers take the embedding in its place"
        return [Finding("error", "tied-head", what, heads[0].name, "Put lm_head on `ignore` and quantize again.")]
    named = checkpoint.config.get("architectures")
    text = isinstance(named, list) and any(str(name).endswith("ForCausalLM") for name in named)
    if text and tied is False and not heads and any("embed_tokens" in name for name in checkpoint.tensors):
        what = "there is no lm_head, and the config says that it isn't the embedding"
        return [Finding("error", "no-head", what, "lm_head", "Set tie_word_embeddings to the source's.")]
    return []
