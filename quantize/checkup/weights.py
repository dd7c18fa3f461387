"""Whether the weights are still those of the source: some rows and columns of some layers, unpacked and compared.

Methods move scales between modules (AWQ, arXiv:2306.00978; SmoothQuant, arXiv:2211.10438): a layer's input channel is
multiplied by what the norm or the layer before it was divided by. So a layer is compared after each input channel has
got the scale that fits best; and then these scales, times what became of the module before, have to be the same for
all channels. docs/decisions/0060 has the limits and what they rest on.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quantize import anatomy
from quantize.checkup.checkpoint import Checkpoint, Layer
from quantize.checkup.claims import Claim, Claims, plain_name
from quantize.checkup.decode import Floats, is_float
from quantize.checkup.finding import Finding, some
from quantize.checkup.unpacked import Index, stepped, weights
from quantize.gram.architectures import Site, sites_of

# Layers of a kind that are looked at, rows and columns of each: faults of an engine are in all of them.
_LAYERS, _LINES = 4, 64
# Below this cosine a row is another row. Four bits of whole channels come to 0.95 and more, two bits to 0.8.
_ALIKE = 0.5
# The share of rows that may be so: a pruned row has no direction.
_ODD = 0.1
# That many input channels may be off by that factor: with four bits in groups of 64 the worst site came to 1.14, and
# one whose scales were lost to 3.8.
_MANY, _FACTOR = 0.1, 1.5
# Where rounding took more than this of a channel's values, its scale can't be told from them.
_COARSE = 0.4
# Of others the layout in 32-bit words is each format's own.
_BITS = (2, 4, 8)
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Pair:
    """A layer, what is claimed of it (None: it isn't quantized), and the source's weight by its full name."""

    checkpoint: Checkpoint
    source: Checkpoint
    layer: Layer
    claim: Claim | None
    original: str

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in], of the source."""
        return self.source.tensors[self.original].tensor.shape

    def both(self, rows: Index, columns: Index) -> tuple[Floats, Floats]:
        """The source's weights and these."""
        before = self.source.floats_at(self.original, rows, columns)
        return before, weights(self.checkpoint, self.layer, self.claim, rows, columns)

    @cached_property
    def some_rows(self) -> tuple[Floats, Floats]:
        """Both, at a sample of rows."""
        return self.both(_spread(self.shape[0]), np.arange(self.shape[1]))

    @cached_property
    def channels(self) -> Floats:
        """The scale of each input channel that fits the sampled rows best; 0 for one that is 0 in the source."""
        return np.nan_to_num(_fit(*self.some_rows, axis=0)[0])

    @cached_property
    def outputs(self) -> Floats:
        """The scale of each output channel that fits a sample of columns best, beside those of the inputs; NaN where it
        can't be told.
        """
        columns = _spread(self.shape[1])
        before, after = self.both(np.arange(self.shape[0]), columns)
        return _told(before * self.channels[columns], after, axis=1)

    @property
    def another(self) -> bool:
        """Whether too many rows point elsewhere than the source's."""
        before, after = self.some_rows
        expected = before * self.channels
        lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(after, axis=1)
        cosines = _ratio((expected * after).sum(1), lengths)
        return float(np.mean(cosines < _ALIKE)) > _ODD

    @property
    def shift(self) -> float:
        """How many steps the values lie above the source's, in the median of the sampled rows."""
        if self.claim is None or self.claim.form == "float":
            return 0.0
        before, _ = self.some_rows
        steps, scale = stepped(
            self.checkpoint, self.layer, self.claim, _spread(self.shape[0]), np.arange(self.shape[1])
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.nanmedian(steps - before * self.channels / scale))


def check(checkpoint: Checkpoint, claims: Claims | None, source: Checkpoint | None, *, whole: bool) -> list[Finding]:
    """Layers against the source's, `whole` all of them.

    What was rotated on purpose isn't compared, and a source that is quantized itself isn't one to compare with.
    """
    if source is None or claims is None or claims.unread or _rotated(checkpoint):
        return []
    if any(layer.quantized for layer in source.layers.values()):
        return []
    pairs = _pairs(checkpoint, claims, source)
    chosen = [name for name in _chosen(pairs, whole) if pairs[name].claim is not None]
    another = [name for name in chosen if pairs[name].another]
    shifted = [name for name in chosen if name not in another and abs(pairs[name].shift) > 0.5]
    findings = []
    if another:
        names = [pairs[name].layer.name for name in another]
        what = f"{some(names)}: unpacked, it isn't the source's weight, whatever scales its channels have"
        hint = "Packed in another order than its format's, or from another layer or model: quantize again."
        findings.append(Finding("error", "weights-differ", what, names[0], hint))
    if shifted:
        names, off = [pairs[name].layer.name for name in shifted], pairs[shifted[0]].shift
        what = f"{some(names)}: values lie {off:+.1f} steps from the source's: zero points of another format"
        hint = "GPTQ stores them less one, its second format as they are (`checkpoint_format`: gptq_v2)."
        findings.append(Finding("error", "zero-point-shift", what, names[0], hint))
    if not findings:
        findings += _unbalanced(checkpoint, source, pairs, chosen)
    return findings


def _rotated(checkpoint: Checkpoint) -> bool:
    """Whether it says that its weights were rotated (QuIP, SpinQuant)."""
    return bool((checkpoint.quantization or {}).get("transform_config"))


def _pairs(checkpoint: Checkpoint, claims: Claims, source: Checkpoint) -> dict[str, Pair]:
    """Linear layers that both have, by their plain names."""
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
    """Some of each kind, from the first to the last."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in pairs:
        kinds[_NUMBER.sub("0", name)].append(name)
    if whole:
        return list(pairs)
    return [names[i] for names in kinds.values() for i in _spread(len(names), _LAYERS)]


def _unbalanced(
    checkpoint: Checkpoint, source: Checkpoint, pairs: Mapping[str, Pair], chosen: list[str]
) -> list[Finding]:
    """Input scales that the module before doesn't take back."""
    kind = str(checkpoint.text_config.get("model_type"))
    layers: dict[str, list[str]] = defaultdict(list)
    for name in chosen:
        if (number := anatomy.layer_number(name)) is not None:
            stem, _, rest = name.partition(f".{number}.")
            layers[f"{stem}.{number}."].append(rest)
    found = []
    for stem, linears in layers.items():
        for site in sites_of(kind, linears):
            factor = _factor(checkpoint, source, pairs, stem, site)
            if factor is not None and factor > _FACTOR:
                found.append((factor, stem + site.absorber, pairs[stem + site.readers[0]].layer.name))
    if not found:
        return []
    factor, absorber, _ = max(found)
    names = [reader for _, _, reader in found]
    what = (
        f"{some(names)}: input channels were scaled, and what comes before doesn't take it back"
        f" ({absorber}: a tenth of the channels is off by a factor of {factor:.1f} or more)"
    )
    hint = "The scales were lost, or applied twice: quantize again, with another release of the engine."
    return [Finding("error", "scales-not-undone", what, names[0], hint)]


def _factor(
    checkpoint: Checkpoint, source: Checkpoint, pairs: Mapping[str, Pair], stem: str, site: Site
) -> float | None:
    """By what the worst tenth of the site's input channels is multiplied on its whole way, or divided, against the
    others; None where that isn't known.
    """
    readers = [pairs[stem + reader] for reader in site.readers]
    before = _absorbed(checkpoint, source, pairs, stem, site, readers[0].shape[1])
    if before is None:
        return None
    rows = [np.concatenate([reader.some_rows[side] for reader in readers]) for side in (0, 1)]
    product = _told(rows[0], rows[1], axis=0) * before
    usable = product[product > 0]
    if usable.size < len(product) / 2:
        return None
    logs = np.log(usable)
    return float(np.exp(np.quantile(np.abs(logs - np.median(logs)), 1 - _MANY)))


def _absorbed(
    checkpoint: Checkpoint, source: Checkpoint, pairs: Mapping[str, Pair], stem: str, site: Site, width: int
) -> Floats | None:
    """What became of each of `width` input channels before it comes in: of the norm's weight, or of the last rows of
    the layer; None where that isn't there, or isn't as wide.
    """
    if site.norm:
        name = f"{stem}{site.absorber}.weight"
        here, there = ({plain_name(full): full for full in one.tensors}.get(name) for one in (checkpoint, source))
        if here is None or there is None:
            return None
        offset = 1.0 if site.offset else 0.0
        found = _ratio(_all(checkpoint, here) + offset, _all(source, there) + offset)
    elif site.absorber and stem + site.absorber in pairs:
        found = _repeated(checkpoint, pairs[stem + site.absorber].outputs, width, site)
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


def _all(checkpoint: Checkpoint, name: str) -> Floats:
    return checkpoint.floats_at(name, np.arange(checkpoint.tensors[name].tensor.elements))


def _fit(before: Floats, after: Floats, axis: int) -> tuple[Floats, Floats]:
    """By what `before` has to be multiplied along an axis to come closest to `after` (least squares), and the share of
    the result that still differs.
    """
    energy = (before * before).sum(axis)
    scale = _ratio((before * after).sum(axis), energy)
    rest = after - before * np.expand_dims(scale, axis)
    return scale, np.sqrt(_ratio((rest * rest).sum(axis), scale * scale * energy))


def _told(before: Floats, after: Floats, axis: int) -> Floats:
    """The scales, NaN where rounding was too coarse to tell them."""
    scale, rest = _fit(before, after, axis)
    return np.where(rest < _COARSE, scale, np.float32(np.nan))


def _spread(size: int, wanted: int = _LINES) -> Index:
    """Up to `wanted` of `size` indices, from the first to the last."""
    return np.unique(np.linspace(0, size - 1, min(size, wanted)).round().astype(np.intp))


def _ratio(over: Floats, under: Floats) -> Floats:
    """Their quotient; NaN where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = over / under
        return found
