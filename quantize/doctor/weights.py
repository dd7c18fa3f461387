"""Whether the weights match the source's: some rows and columns of some layers, dequantized and compared.

Methods move scales between modules (AWQ, arXiv:2306.00978; SmoothQuant, arXiv:2211.10438): a layer's input channel is
multiplied by what the norm or the layer before it was divided by. So each input channel is first
scaled to fit best. Then the product of these scales and the change of the module before has to be the same for all
channels. docs/decisions/0060 has the limits and the measurements behind them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from qpack.core.problems import Code, Problem, named
from quantize.checkpoint import layer_names
from quantize.doctor.checkpoint import Checkpoint
from quantize.doctor.decode import Floats, is_float
from quantize.doctor.quantization_config import Claims, plain_name
from quantize.doctor.scales import INVERTED
from quantize.doctor.weights_against_source import Pair, Sample, fitted, ratio, spread
from quantize.gram.architectures import Site, sites_of

_DIFFER = Code(
    "weights-differ",
    "A dequantized layer differs from the source's: packed in another order, or from another layer or model.",
)
_MULTIPLIED = Code("weights-multiplied", "All weights of a layer are the source's times one factor.")
_SHIFT = Code(
    "zero-point-shift",
    "Dequantized values are off by whole steps: zero points in GPTQ's other format.",
)
_NOT_UNDONE = Code(
    "scales-not-undone",
    "Input channels were scaled (AWQ, SmoothQuant), and the norm or layer before doesn't undo it.",
)

# Layers compared per kind: a fault of an engine is in all of them.
_LAYERS = 4
# This share of input channels may be off by this factor. In four bits with groups of 64 the worst site had 1.14, and
# one whose scales were lost 3.8.
_MANY, _FACTOR = 0.1, 1.5
# Steps that values may be above or below the source's.
_STEPS = 0.5
# By how much a layer may be larger or smaller than the source's: methods move scales of a few times between layers.
_MAGNITUDE = 64.0
# By what all channels of a layer may be multiplied: a clipped range takes less.
_ALL = 1.4
# How far apart norms may be that weren't scaled: they are stored in 16 bits.
_SAME = 2**-7
# Other widths have a layout of their own in each format.
_BITS = (2, 4, 8)
_NUMBER = re.compile(r"\d+")

Norms = Mapping[str, tuple[Floats, Floats]]
"""Norms by their plain names: the source's and the checkpoint's."""
Lost = tuple[float, str, str]
"""Factor by which channels are off, the module before, and the first layer that reads them."""


def check(checkpoint: Checkpoint, claims: Claims | None, source: Checkpoint | None, *, whole: bool) -> list[Problem]:
    """Compare layers with the source's: some of each kind, or with `whole` all.

    Rotated weights aren't compared, nor is anything with a quantized source.
    """
    if source is None or claims is None or claims.unread or _rotated(checkpoint):
        return []
    if any(layer.quantized for layer in source.layers.values()):
        return []
    pairs, norms = _pairs(checkpoint, claims, source), _norms(checkpoint, source)
    another: list[str] = []
    shifted: list[tuple[str, float]] = []
    inverted: list[tuple[str, float]] = []
    multiplied: list[tuple[str, float]] = []
    lost: list[Lost] = []
    # One decoder layer at a time: a mixture of experts has tens of thousands of linear layers.
    for stem, names in _blocks(_chosen(pairs, whole)).items():
        samples = {name: Sample.of(pairs[name]) for name in names}
        # A factor that a norm undoes is none.
        kept = all(np.allclose(*both, rtol=_SAME) for name, both in norms.items() if name.startswith(stem))
        larger: dict[str, float] = {}
        for sample in samples.values():
            if sample.another():
                another.append(sample.pair.layer.name)
            elif not 1 / _MAGNITUDE < (size := sample.magnitude()) < _MAGNITUDE:
                inverted.append((sample.pair.layer.name, size))
            elif kept and (size := sample.factor() or 1.0) < 0:
                another.append(sample.pair.layer.name)
            elif kept and not 1 / _ALL < size < _ALL:
                larger[plain_name(sample.pair.layer.name)] = size
            elif abs(off := sample.shift()) > _STEPS:
                shifted.append((sample.pair.layer.name, off))
        if larger:
            undone = _undone(checkpoint, norms, pairs, stem, samples)
            multiplied += [(samples[name].pair.layer.name, size) for name, size in larger.items() if name not in undone]
        if not another and not shifted and not inverted and not multiplied:
            lost += _lost(checkpoint, norms, pairs, stem, samples)
    if another or shifted or inverted or multiplied:
        return [*_another(another), *_inverted(inverted), *_multiplied(multiplied), *_shifted(shifted)]
    return _scaled(lost)


def _another(names: list[str]) -> list[Problem]:
    if not names:
        return []
    what = "dequantized, it differs from the source's weight, whatever scales its channels have"
    hint = "Packed in another order than its format's, or from another layer or model: quantize again."
    return [Problem(_DIFFER, what, named(names), hint)]


def _inverted(found: list[tuple[str, float]]) -> list[Problem]:
    if not found:
        return []
    names, size = [name for name, _ in found], found[0][1]
    what = f"unpacked, it is {size:.3g} times as large as the source's"
    hint = "A scale is stored inverted: compressed-tensors divides by global scales, Model-Optimizer multiplies."
    return [Problem(INVERTED, what, named(names), hint)]


def _multiplied(found: list[tuple[str, float]]) -> list[Problem]:
    if not found:
        return []
    names, size = [name for name, _ in found], found[0][1]
    what = f"unpacked, all of it is {size:.3g} times the source's"
    hint = "A scale is counted twice or not at all, or a stored exponent is off by one: quantize again."
    return [Problem(_MULTIPLIED, what, named(names), hint)]


def _shifted(found: list[tuple[str, float]]) -> list[Problem]:
    if not found:
        return []
    names, off = [name for name, _ in found], found[0][1]
    what = f"values lie {off:+.1f} steps from the source's: zero points of another format"
    hint = "GPTQ stores zero points minus one, its second format unchanged (`checkpoint_format`: gptq_v2)."
    return [Problem(_SHIFT, what, named(names), hint)]


def _scaled(found: list[Lost]) -> list[Problem]:
    if not found:
        return []
    factor, absorber, _ = max(found)
    names = [reader for _, _, reader in found]
    what = (
        "input channels were scaled, and the module before doesn't undo it"
        f" ({absorber}: a tenth of the channels is off by a factor of {factor:.1f} or more)"
    )
    hint = "The scales were lost or applied twice: quantize again with another release of the engine."
    return [Problem(_NOT_UNDONE, what, named(names), hint)]


def _rotated(checkpoint: Checkpoint) -> bool:
    """Whether the config says that weights were rotated (QuIP, SpinQuant)."""
    return bool((checkpoint.quantization or {}).get("transform_config"))


def _pairs(checkpoint: Checkpoint, claims: Claims, source: Checkpoint) -> dict[str, Pair]:
    """Linear layers of both checkpoints, by their plain names."""
    originals = {plain_name(name): name for name in source.tensors}
    found = {}
    for full, layer in checkpoint.layers.items():
        original = originals.get(plain_name(f"{full}.weight"))
        tensor = source.tensors[original].tensor if original else None
        claim = claims.of(layer) if layer.quantized else None
        known = not layer.quantized or (claim is not None and claim.bits in _BITS)
        if original and tensor and known and layer.linear and len(tensor.shape) == 2 and is_float(tensor.dtype):
            found[plain_name(full)] = Pair(checkpoint, source, layer, claim, original)
    return found


def _chosen(pairs: Mapping[str, Pair], whole: bool) -> list[str]:
    """Quantized layers: some of each kind, from the first to the last, or all."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name, pair in pairs.items():
        if pair.claim is not None:
            kinds[_NUMBER.sub("0", name)].append(name)
    return [names[i] for names in kinds.values() for i in spread(len(names), len(names) if whole else _LAYERS)]


def _blocks(names: Iterable[str]) -> dict[str, list[str]]:
    """Layers grouped by decoder layer; others in groups of one."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        number = layer_names.layer_number(name)
        found[name if number is None else f"{name.partition(f'.{number}.')[0]}.{number}."].append(name)
    return found


def _norms(checkpoint: Checkpoint, source: Checkpoint) -> Norms:
    def named(one: Checkpoint) -> dict[str, str]:
        return {
            plain_name(name): name
            for name, span in one.tensors.items()
            # `input_layernorm`, `ln_1`, `norm`: by its shape, as its names are many.
            if name.endswith(".weight") and len(span.tensor.shape) == 1 and is_float(span.tensor.dtype)
        }

    here, there = named(checkpoint), named(source)
    return {name: (source.floats(there[name]), checkpoint.floats(here[name])) for name in here.keys() & there.keys()}


def _lost(
    checkpoint: Checkpoint, norms: Norms, pairs: Mapping[str, Pair], stem: str, samples: Mapping[str, Sample]
) -> list[Lost]:
    """Sites of a decoder layer whose input scales the module before doesn't undo."""
    found = []
    for site, readers, before in _sites(checkpoint, norms, pairs, stem, samples):
        factor = _factor(readers, before)
        if factor is not None and factor > _FACTOR:
            found.append((factor, stem + site.absorber, readers[0].pair.layer.name))
    return found


def _undone(
    checkpoint: Checkpoint, norms: Norms, pairs: Mapping[str, Pair], stem: str, samples: Mapping[str, Sample]
) -> set[str]:
    """Layers whose factor another layer undoes: down_proj is multiplied by what up_proj was divided by. For a decoder
    layer whose norms are the source's.
    """
    found: set[str] = set()
    for site, readers, before in _sites(checkpoint, norms, pairs, stem, samples):
        whole = None if site.norm else _whole(readers, before)
        if whole is None:
            continue
        # Outputs are told against input channels, which fit best with what all outputs have in common.
        channels = Sample.of(pairs[stem + site.absorber]).channels
        common = float(np.median(channels[channels != 0])) if channels.any() else 1.0
        if 1 / _ALL < common * float(np.median(whole)) < _ALL:
            found |= {stem + site.absorber, *(stem + reader for reader in site.readers)}
    return found


def _sites(
    checkpoint: Checkpoint, norms: Norms, pairs: Mapping[str, Pair], stem: str, samples: Mapping[str, Sample]
) -> Iterator[tuple[Site, list[Sample], Floats]]:
    """The sites of a decoder layer, the samples of their readers, and what became of their input channels before."""
    kind = str(checkpoint.text_config.get("model_type"))
    for site in sites_of(kind, {name.removeprefix(stem): None for name in samples}):
        readers = [samples[stem + reader] for reader in site.readers]
        before = _absorbed(checkpoint, norms, pairs, stem, site, readers[0].pair.shape[1])
        if before is not None:
            yield site, readers, before


def _whole(readers: Sequence[Sample], before: Floats) -> Floats | None:
    """By what input channels are multiplied on their whole way; None where most of them can't be told."""
    rows = [np.concatenate(side) for side in ([r.before for r in readers], [r.after for r in readers])]
    product = fitted(rows[0], rows[1], axis=0) * before
    usable = product[product > 0]
    return None if usable.size < len(product) / 2 else usable


def _factor(readers: Sequence[Sample], before: Floats) -> float | None:
    """By what the worst tenth of the input channels is multiplied on its whole way, or divided, against the others.

    None where that can't be told.
    """
    usable = _whole(readers, before)
    if usable is None:
        return None
    logs = np.log(usable)
    return float(np.exp(np.quantile(np.abs(logs - np.median(logs)), 1 - _MANY)))


def _absorbed(
    checkpoint: Checkpoint, norms: Norms, pairs: Mapping[str, Pair], stem: str, site: Site, width: int
) -> Floats | None:
    """What became of each of `width` input channels before it comes in: of the norm's weight, or of the last rows of
    the layer; None where that isn't there, or isn't as wide.
    """
    name = stem + site.absorber
    if site.norm and f"{name}.weight" in norms:
        then, now = (weight + (1.0 if site.offset else 0.0) for weight in norms[f"{name}.weight"])
        found = ratio(now, then)
    elif site.absorber and name in pairs:
        found = _repeated(checkpoint, Sample.of(pairs[name]).outputs(), width, site)
    else:
        return None
    return found if len(found) == width else None


def _repeated(checkpoint: Checkpoint, rows: Floats, width: int, site: Site) -> Floats:
    """The rows that `width` input channels come from: the last ones, and where they are values of attention each
    key-value head's for all of its query heads.
    """
    heads, keys = (checkpoint.text_config.get(f"num_{name}_heads") for name in ("attention", "key_value"))
    if not site.heads or not isinstance(heads, int) or not isinstance(keys, int):
        return rows[-width:]
    if min(heads, keys) < 1 or heads % keys or width % heads or len(rows) < width // heads * keys:
        return rows[:0]
    values = rows[-(width // heads) * keys :].reshape(keys, -1)
    return values.repeat(heads // keys, axis=0).reshape(-1)
