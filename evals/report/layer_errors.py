"""Quantization error per layer input, for engines that report it; largest first."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from qpack.core.findings import LayerError
from qpack.core.records import Release

if TYPE_CHECKING:
    from evals.report.tables import Table

WORST = 10
FEW_TOKENS = 128
"""Fewer tokens than channels in a usual group don't span the group (decision 46)."""
_NAMED = 3


def measured(release: Release) -> tuple[LayerError, ...]:
    """The records with errors: none for engines that don't report them, for old releases, or without calibration."""
    return tuple(site for site in release.quantized.sites if site.error_after is not None)


def worst(sites: Iterable[LayerError], count: int = WORST) -> list[LayerError]:
    """Those with the largest error as stored, in descending order; ties in the model's order."""
    return sorted(sites, key=lambda site: -(site.error_after or 0.0))[:count]


def by_kind(sites: Iterable[LayerError]) -> dict[str, dict[int, LayerError]]:
    """By kind of input (its name without numbers) and decoder layer number; the worst where there are several, as with
    experts.
    """
    found: dict[str, dict[int, LayerError]] = defaultdict(dict)
    for site in sites:
        numbers = re.findall(r"\d+", site.layer)
        kind = re.sub(r"\W*\d+\W*", " ", site.site).strip()
        depth = int(numbers[-1]) if numbers else 0
        other = found[kind].get(depth)
        if other is None or (site.error_after or 0.0) > (other.error_after or 0.0):
            found[kind][depth] = site
    return dict(found)


def starved(sites: Iterable[LayerError]) -> tuple[dict[str, int], int]:
    """({expert: tokens} of experts with fewer than FEW_TOKENS, e.g. `model.layers.3 expert_5`, fewest first; number of
    experts).
    """
    experts: dict[str, int] = {}
    for site in sites:
        if site.routed_tokens is not None and (found := re.match(r"expert_\d+", site.site)):
            experts[f"{site.layer} {found[0]}"] = site.routed_tokens
    few = sorted((tokens, name) for name, tokens in experts.items() if tokens < FEW_TOKENS)
    return {name: tokens for tokens, name in few}, len(experts)


def warning(sites: Iterable[LayerError]) -> str | None:
    """The warning about such experts, in one sentence; None without them."""
    few, count = starved(sites)
    if not few:
        return None
    named = ", ".join(f"{name}: {tokens}" for name, tokens in list(few.items())[:_NAMED])
    more = ", ..." if len(few) > _NAMED else ""
    return (
        f"{len(few)} of {count} experts got fewer than {FEW_TOKENS} calibration tokens ({named}{more}), too few to "
        "measure their inputs; raise calibration.samples, or add texts that these experts handle"
    )


def table(release: Release) -> Table:
    """The ten worst inputs, and notes on all of them."""
    # Not at the top: it imports scipy, which a build with nothing to do doesn't need.
    from evals.report.tables import Table

    sites = measured(release)
    rows = tuple(
        (
            site.layer,
            site.site,
            f"{site.bits}" + (f", groups of {site.group_size}" if site.group_size else ", whole channels"),
            _share(site.error_before),
            _share(site.error_after),
            "none" if site.exponent is None else f"{site.exponent:.2f}",
            "" if site.clipped is None else f"{100 * site.clipped:.0f} %",
            "" if site.damping is None else f"{site.damping:g}",
            "" if site.dead_channels is None else f"{site.dead_channels:,}",
        )
        for site in worst(sites)
    )
    head = ("Layer", "Input of", "Bits", "Rounded", "Stored", "Exponent", "Clipped", "Damping", "Dead channels")
    dead = sum(1 for site in sites if site.dead_channels)
    least = min((site.damping for site in sites if site.damping is not None), default=None)
    damped = sum(1 for site in sites if site.damping is not None and least is not None and site.damping > least)
    note = (
        "Error is the mean squared change of the layers' outputs on the calibration rows, relative to their mean "
        "square: with plain rounding, and as stored. It shows where to look, not a layer's share of the total loss."
    )
    note += f" {dead} of {len(sites)} inputs have channels that are zero in every row." if dead else ""
    note += f" {damped} needed more damping than the others." if damped else ""
    if (warned := warning(sites)) is not None:
        note += f" {warned}."
    return Table(f"The {len(rows)} inputs with the largest error, of {len(sites)}", head, rows, note)


def _share(error: float | None) -> str:
    return "" if error is None else f"{100 * error:.3g} %"
