"""The report's tables of held-out text beyond its totals."""

from __future__ import annotations

from evals.tables import Table, number, percent, span
from qpack.results import Release


def domain_table(release: Release) -> Table:
    """Each text domain with the figures of the whole; no rows where there is one text."""
    rows = tuple(
        (
            d.domain,
            f"{d.windows:,}",
            number(d.perplexity_baseline),
            number(d.perplexity_artifact),
            f"×{number(d.perplexity_ratio.value, 4)} ({span(d.perplexity_ratio, lambda x: number(x, 4))})",
            f"{number(d.kl_divergence.value)} ({span(d.kl_divergence, number)})",
            number(d.tail.kl_at_most) if d.tail else "–",
            f"{percent(d.flip_rate.value)} ({span(d.flip_rate, percent)})",
        )
        for d in release.comparison.domains
    )
    head = ("Domain", "Windows", "Perplexity, baseline", "Artifact", "Ratio", "KL, nats", "KL at most", "Flipped")
    note = (
        "The table above is of all windows together. Here each domain's windows are taken alone, with their intervals."
    )
    return Table("Held-out text by domain", head, rows, note)
