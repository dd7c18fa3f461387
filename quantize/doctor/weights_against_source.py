"""A layer and the source's: samples of both, and the scales that bring its channels closest to the source's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantize.doctor.checkpoint import Checkpoint, Layer
from quantize.doctor.decode import Floats
from quantize.doctor.quantization_config import Claim
from quantize.doctor.unpacked import Index, stepped, weights

# Rows and columns read per layer.
_LINES = 64
# Below this cosine a row is a different row: in four bits with groups of 64, nine in ten have 0.95 or more.
_ALIKE = 0.5
# Share of rows that may be below it: a pruned row has no direction.
_ODD = 0.1
# Logarithm by which the scales of channels may be apart for one factor to stand for all.
_EVEN = 0.25
# Where rounding took more than this of a channel's values, its scale can't be told from them.
_COARSE = 0.4


@dataclass(frozen=True)
class Pair:
    """A layer, its claim (None: unquantized), and the full name of the source's weight."""

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


@dataclass(frozen=True)
class Sample:
    """Some rows of a pair: what the source has, [rows, in], what is there now, and by what each input channel has to be
    multiplied to come closest (0 for one that is 0 in the source).
    """

    pair: Pair
    before: Floats
    after: Floats
    channels: Floats

    @classmethod
    def of(cls, pair: Pair) -> Sample:
        """Read a sample."""
        before, after = pair.both(spread(pair.shape[0]), np.arange(pair.shape[1]))
        return cls(pair, before, after, np.nan_to_num(_fit(before, after, axis=0)[0]))

    def another(self) -> bool:
        """Whether too many rows have another direction than the source's."""
        expected = self.before * self.channels
        lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(self.after, axis=1)
        cosines = ratio((expected * self.after).sum(1), lengths)
        return float(np.mean(cosines < _ALIKE)) > _ODD

    def magnitude(self) -> float:
        """How many times as large as the source's it is; 1 where that can't be told."""
        lengths = [float(np.linalg.norm(side.astype(np.float64))) for side in (self.after, self.before)]
        return lengths[0] / lengths[1] if all(length > 0 and np.isfinite(length) for length in lengths) else 1.0

    def factor(self) -> float | None:
        """By what all its channels are multiplied alike, below 0 where they are negated; None where that can't be told,
        or where channels differ, as after AWQ or SmoothQuant.
        """
        found = fitted(self.before, self.after, axis=0)
        found = found[np.isfinite(found) & (found != 0)]
        if found.size < self.before.shape[1] / 2:
            return None
        middle = float(np.median(found))
        with np.errstate(invalid="ignore"):
            apart = np.abs(np.log(found / middle))
        return middle if float(np.mean(apart < _EVEN)) > 1 - _ODD else None

    def shift(self) -> float:
        """Median of the steps by which values are above the source's."""
        pair = self.pair
        if pair.claim is None or pair.claim.form in ("float", "fp4"):
            return 0.0
        rows, columns = spread(pair.shape[0]), np.arange(pair.shape[1])
        steps, scale = stepped(pair.checkpoint, pair.layer, pair.claim, rows, columns)
        return float(np.nanmedian(steps - ratio(self.before * self.channels, scale)))

    def outputs(self) -> Floats:
        """By what each output channel was multiplied, told from some columns; NaN where it can't be."""
        columns = spread(self.pair.shape[1])
        before, after = self.pair.both(np.arange(self.pair.shape[0]), columns)
        return fitted(before * self.channels[columns], after, axis=1)


def _fit(before: Floats, after: Floats, axis: int) -> tuple[Floats, Floats]:
    """By what `before` has to be multiplied along an axis to come closest to `after` (least squares), and the share of
    the result that still differs.
    """
    energy = (before * before).sum(axis)
    scale = ratio((before * after).sum(axis), energy)
    rest = after - before * np.expand_dims(scale, axis)
    return scale, np.sqrt(ratio((rest * rest).sum(axis), scale * scale * energy))


def fitted(before: Floats, after: Floats, axis: int) -> Floats:
    """The best-fitting scales along an axis, NaN where rounding is too coarse to find them."""
    scale, rest = _fit(before, after, axis)
    return np.where(rest < _COARSE, scale, np.float32(np.nan))


def spread(size: int, wanted: int = _LINES) -> Index:
    """Up to `wanted` of `size` indices, from the first to the last."""
    return np.unique(np.linspace(0, size - 1, min(size, wanted)).round().astype(np.intp))


def ratio(over: Floats, under: Floats) -> Floats:
    """Their quotient; NaN where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = over / under
        return found
