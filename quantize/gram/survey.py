"""The error of every site with every grid, before rounding: mixed precision is chosen by these.

One pass of the calibration rows through the source model. A site's error with a grid is what the method will leave, to
first order (the score of the scale search, without scales), and where a server rounds inputs what that adds, as a share
of its outputs' mean square: so sites of different size compare. A site that is left in 16 bits has none.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from . import awq, smooth
from .allocate import Choice, allocate, part_of
from .architectures import Site
from .grid import Grid
from .layer import NotFinite, Settings, matches, statistics
from .matrices import Gram, error
from .stream import Batch, Run

# As configs name the number of a layer's experts, and of those that answer a token.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
_CHOSEN = ("num_experts_per_tok", "moe_k", "top_k_experts", "moe_topk", "num_selected_experts", "num_experts_per_token")


@dataclass(frozen=True)
class Mixed:
    """`budget` bits a weight, scales and zero points included, over the `grids` that a layer may get; None leaves it in
    16 bits.

    `shards`: GPUs that will share a layer, whose groups may not lie across two of them. `choices`: which grids, by
    their places, a layer may get: those of the first pattern that matches its name; all without a pattern.
    `experts`: how often a token reads an expert, where the budget is of weights read per token, else 1.
    """

    budget: float
    grids: tuple[Grid | None, ...]
    shards: int = 1
    choices: tuple[tuple[str, tuple[int, ...]], ...] = ()
    experts: float = 1.0

    def fits(self, grid: Grid, columns: int) -> bool:
        """Whether whole groups divide the input channels on each GPU."""
        return columns % (grid.width(columns) * (self.shards if grid.group_size else 1)) == 0

    def allowed(self, name: str) -> tuple[int, ...]:
        """The places of the grids that a layer may get."""
        every = tuple(range(len(self.grids)))
        return next((grids for pattern, grids in self.choices if matches(pattern, name)), every)

    def read(self, layer: str) -> float:
        """How often the budget counts a layer."""
        return self.experts if ".experts." in layer else 1.0


def experts_read(config: PretrainedConfig) -> float:
    """The share of a layer's experts that a token reads; 1 where the config doesn't tell."""
    inner = config.get_text_config()
    every = next((n for key in _EXPERTS if isinstance(n := getattr(inner, key, None), int) and n > 0), None)
    chosen = next((n for key in _CHOSEN if isinstance(n := getattr(inner, key, None), int) and n > 0), None)
    return min(1.0, chosen / every) if every and chosen else 1.0


@dataclass
class Survey(Run):
    """A run that measures layers and doesn't change them. It resumes too."""

    mixed: Mixed = field(default_factory=lambda: Mixed(0, ()))

    @property
    def rounds_inputs(self) -> bool:
        """Whether a grid rounds inputs."""
        return any(grid is not None and grid.activations for grid in self.mixed.grids)

    def _layer(self, index: int, tensors: dict[str, Tensor], batches: list[Batch]) -> dict[str, Tensor]:
        layer, prefix = self._loaded(index, tensors), f"{self.prefix}.{index}"
        self._observe(index, batches)
        grams = self._collected(index, batches, onwards=index + 1 < len(self.layers))
        measured = [
            self._measured(layer, prefix, site, grams.pop(site.name, None)) if owner == self.ranks.rank else None
            for site, owner in zip(self.sites[index], self.owners[index], strict=True)
        ]
        everyones = self.ranks.gathered(measured)
        found = [everyones[owner][number] for number, owner in enumerate(self.owners[index])]
        self.records += [record for record in found if record is not None]
        layer.to("meta")
        return {}

    @torch.no_grad()
    def _measured(self, layer: nn.Module, prefix: str, site: Site, matrix: Gram | None) -> dict[str, object] | None:
        """The errors of one site, by grid; None where the grid's groups don't divide its channels."""
        names = [name for name in site.readers if not self.settings.ignores(f"{prefix}.{name}")]
        if not names:
            return None
        weight = torch.cat([layer.get_submodule(name).weight.float() for name in names])
        gram = factored = None
        if matrix is not None:
            gram, factored = statistics(matrix, f"{prefix}.{names[0]}", self.settings, self.clock.phase)
        with self.clock.phase("search"):
            power = (weight.square().sum() if gram is None else error(gram, weight)).clamp(min=1e-30)
            errors: list[float | None] = []
            allowed = self.mixed.allowed(f"{prefix}.{names[0]}")
            for place, grid in enumerate(self.mixed.grids):
                if place not in allowed or (grid is not None and not self.mixed.fits(grid, weight.shape[1])):
                    errors.append(None)
                elif grid is None:
                    errors.append(0.0)
                elif gram is None or matrix is None:
                    errors.append(float((grid.rounded(weight) - weight).square().sum() / power))
                else:
                    ones = torch.ones(1, weight.shape[1], device=weight.device)
                    found = awq.scores(weight, ones, gram, grid, factored)[0]
                    if grid.activations:
                        found = found + smooth.input_error(matrix.sample, weight, None, grid)
                    errors.append(float(found / power))
        bits = [
            None if e is None else grid.bits_of(*weight.shape) if grid is not None else 16 * weight.numel()
            for grid, e in zip(self.mixed.grids, errors, strict=True)
        ]
        if any(e != e for e in errors):
            raise NotFinite(f"{prefix}.{names[0]}: its weights hold NaN or infinite values")
        return {"layer": prefix, "site": site.name, "linears": names, "weights": weight.numel(), "bits": bits,
                "errors": errors}  # fmt: skip

    def _write_rest(self, names: list[str] | None, path: Path) -> None:
        """Nothing: a survey makes no checkpoint."""

    def allocated(self) -> Settings:
        """The settings with the grid of each site, once the run has measured them. Raises allocate.TooSmall."""
        found = chosen(self.records, self.mixed)
        return dataclasses.replace(
            self.settings,
            chosen={site: grid for site, grid in found.items() if grid is not None},
            ignore=(*self.settings.ignore, *left_alone(self.records, found)),
        )

    @property
    def digest(self) -> str:
        """Digest of the job that the scratch folder belongs to."""
        return hashlib.sha256(f"{super().digest} {self.mixed}".encode()).hexdigest()


def left_alone(records: Sequence[dict[str, Any]], picked: Mapping[str, Grid | None]) -> list[str]:
    """The names of layers that stay in 16 bits by what was `chosen`."""
    return [
        f"{record['layer']}.{name}"
        for record in records
        if picked[f"{record['layer']} {record['site']}"] is None
        for name in record["linears"]
    ]


def chosen(records: Sequence[dict[str, Any]], mixed: Mixed) -> dict[str, Grid | None]:
    """Grids by layer and site ("model.layers.0 qkv"), None for what stays in 16 bits, from what a survey recorded.
    Raises allocate.TooSmall.

    What a server joins into one layer is one part: q, k and v; gate and up; all experts of a layer.
    """

    def read(record: Mapping[str, Any]) -> float:
        return mixed.read(f"{record['layer']}.{record['linears'][0]}")

    parts: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        parts.setdefault(part_of(record["layer"], record["linears"][0]), []).append(record)
    able = [
        [i for i in range(len(mixed.grids)) if all(record["bits"][i] is not None for record in members)]
        for members in parts.values()
    ]
    choices = [
        [
            Choice(
                round(sum(record["bits"][i] * read(record) for record in members)),
                sum(record["errors"][i] for record in members),
            )
            for i in mine
        ]
        for mine, members in zip(able, parts.values(), strict=True)
    ]
    weights = sum(record["weights"] * read(record) for record in records)
    picks = allocate(choices, mixed.budget * weights)
    return {
        f"{record['layer']} {record['site']}": mixed.grids[mine[pick]]
        for pick, mine, members in zip(picks, able, parts.values(), strict=True)
        for record in members
    }
