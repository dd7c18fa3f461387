"""Which layers hurt: what quantizing each input's layers cost, as far as the engine tells, worst first."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from qpack.core.findings import SiteError
from qpack.core.records import Release

if TYPE_CHECKING:
    from evals.report.tables import Table

WORST = 10
FEW_TOKENS = 128
"""Fewer tokens than channels in the usual group: the inputs that were seen don't span a group (decision 46)."""
_NAMED = 3


def told(release: Release) -> tuple[SiteError, ...]:
    """The records that have errors: none of engines that don't tell, of older releases, or without calibration."""
    return tuple(site for site in release.quantized.sites if site.error_after is not None)


def worst(sites: Iterable[SiteError], count: int = WORST) -> list[SiteError]:
    """Those with the largest error after, from the largest; equal ones in the model's order."""
    return sorted(sites, key=lambda site: -(site.error_after or 0.0))[:count]


def by_kind(sites: Iterable[SiteError]) -> dict[str, dict[int, SiteError]]:
    """By the kind of input (its name without numbers) and the decoder layer's number: the worst where there are many,
    as with experts.
    """
    found: dict[str, dict[int, SiteError]] = defaultdict(dict)
    for site in sites:
        numbers = re.findall(r"\d+", site.layer)
        kind = re.sub(r"\W*\d+\W*", " ", site.site).strip()
        depth = int(numbers[-1]) if numbers else 0
        other = found[kind].get(depth)
        if other is None or (site.error_after or 0.0) > (other.error_after or 0.0):
            found[kind][depth] = site
    return dict(found)


def starved(sites: Iterable[SiteError]) -> tuple[dict[str, int], int]:
    """Tokens by expert (`model.layers.3 expert_5`) of those with fewer than FEW_TOKENS, fewest first, and how many
    experts there are.
    """
    experts: dict[str, int] = {}
    for site in sites:
        if site.routed_tokens is not None and (found := re.match(r"expert_\d+", site.site)):
            experts[f"{site.layer} {found[0]}"] = site.routed_tokens
    few = sorted((tokens, name) for name, tokens in experts.items() if tokens < FEW_TOKENS)
    return {name: tokens for tokens, name in few}, len(experts)


def warning(sites: Iterable[SiteError]) -> str | None:
    """What to tell of them, in one sentence; None if there are none."""
    few, count = starved(sites)
    if not few:
        return None
    named = ", ".join(f"{name}: {tokens}" for name, tokens in list(few.items())[:_NAMED])
    more = ", ..." if len(few) > _NAMED else ""
    return (
        f"{len(few)} of {count} experts were sent fewer than {FEW_TOKENS} calibration tokens ({named}{more}), too few "
        "to know their inputs by; more calibration.samples help, or texts of the kinds that they serve"
    )


def table(release: Release) -> Table:
    """The worst ten, and what was remarkable in all of them."""
    # It brings scipy, which a build that has nothing to do is done before it could load.
    from evals.report.tables import Table

    sites = told(release)
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
        "Errors are mean squared changes of the outputs on the calibration rows, as shares of their mean square: by "
        "plain rounding, and as stored. They say where to look, not which share of the whole loss a layer is to blame "
        "for."
    )
    note += f" {dead} of {len(sites)} inputs have channels that were zero in every row." if dead else ""
    note += f" {damped} needed more damping than the others." if damped else ""
    if (warned := warning(sites)) is not None:
        note += f" {warned}."
    return Table(f"The {len(rows)} inputs whose layers lost most, of {len(sites)}", head, rows, note)


def _share(error: float | None) -> str:
    return "" if error is None else f"{100 * error:.3g} %"
