"""Tables of speed: separate load, interleaved load, and the gain of a draft."""

from __future__ import annotations

from evals.comparison import speculative
from evals.report.tables import Table, number, percent, span
from qpack.core import side_by_side
from qpack.core.records import Release
from qpack.core.side_by_side import mean_rate, run_median
from qpack.core.speed import Level, OpenLevel


def latency_table(release: Release) -> Table:
    """Request times per load level, in milliseconds, from separate runs."""
    rows = []
    before, after = release.baseline.latency, release.artifact.latency
    pairs: list[tuple[Level | OpenLevel, Level | OpenLevel]] = [
        *zip(before.levels, after.levels, strict=True),
        *zip(before.open_levels, after.open_levels, strict=True),
    ]
    for levels in pairs:
        for name, level in zip(("baseline", "artifact"), levels, strict=True):
            times = [
                " / ".join(number(run_median(level, metric, p)) for p in ("p50", "p95", "p99"))
                for metric in ("ttft_ms", "inter_token_ms", "end_to_end_ms")
            ]
            done, failed = (sum(getattr(run, count) for run in level.runs) for count in ("completed", "failed"))
            requests = f"{failed:,} of {done + failed:,}"
            load = f"{level.rate:g}/s" if isinstance(level, OpenLevel) else str(level.concurrency)
            rows.append((f"{load}, {name}", *times, number(mean_rate(level)), str(len(level.runs)), requests))
    head = ("Load", "First token", "Between tokens", "Whole answer", "Output tokens/s", "Runs", "Failed requests")
    shape = release.artifact.latency.levels[0] if release.artifact.latency.levels else None
    sizes = f"; {shape.input_tokens} tokens in, {shape.output_tokens} out" if shape else ""
    note = (
        "Separate runs of each model. Times are p50 / p95 / p99 in milliseconds, medians over runs; tokens/s is the "
        "geometric mean over runs, all clients together."
    )
    if after.open_levels:
        note += " Loads with /s are open loops: requests per second, Poisson arrivals."
    return Table(f"Latency and throughput, {release.artifact.latency.tool}{sizes}", head, tuple(rows), note)


def tools_table(release: Release) -> Table:
    """The same load by other generators, as they report it; no rows without one."""
    rows = []
    for load, after in zip(release.baseline.loads, release.artifact.loads, strict=False):
        for before, run in zip(load.runs, after.runs, strict=True):
            level = str(run.concurrency) if run.rate is None else f"{run.rate:g}/s"
            for name, tool, one in (("baseline", load.tool, before), ("artifact", after.tool, run)):
                times = [
                    " / ".join(number(value) for value in (found.p50, found.p95, found.p99))
                    for found in (one.ttft_ms, one.per_token_ms, one.end_to_end_ms)
                ]
                failed = f"{one.failed:,} of {one.completed + one.failed:,}"
                rows.append((f"{tool}: {level}, {name}", *times, number(one.output_tokens_per_second), failed))
    head = ("Load", "First token", "Per token after it", "Whole answer", "Output tokens/s", "Failed requests")
    note = "As each tool reports one run: p50 / p95 / p99 in milliseconds. No gate uses these figures."
    return Table("The same load by other generators", head, tuple(rows), note)


def speed_table(release: Release) -> Table:
    """Artifact over baseline, per concurrency."""
    rows = tuple(
        (
            f"{s.concurrency}",
            f"×{number(s.throughput.value)}",
            span(s.throughput, number),
            f"{number(pair.baseline)} → {number(pair.artifact)}",
            f"×{number(s.ttft_p50)}",
            span(s.ttft, number) if s.ttft else "–",
            f"×{number(s.inter_token_p50)}",
        )
        for s, pair in zip(release.comparison.speed, side_by_side.throughput(release), strict=True)
    )
    head = ("Clients", "Output tokens/s", "Interval", "Tokens/s", "First token p50", "Interval", "Between tokens p50")
    note = f"Tokens/s above ×1 and times below ×1 mean faster. {how_paired(release)}"
    return Table("Speed: artifact over baseline", head, rows, note)


def speculative_table(release: Release) -> Table:
    """Acceptance of the draft, and its gain over the same server without it."""
    found = speculative.read(release.drafting) if release.drafting else ()
    rows = tuple(
        (
            f"{one.concurrency}",
            "–" if one.acceptance_rate is None else percent(one.acceptance_rate),
            "–" if one.accepted_length is None else f"{one.accepted_length:.2f}",
            " → ".join(map(number, one.gain.tokens_per_second or ())),
            f"×{number(one.gain.throughput.value)}",
            span(one.gain.throughput, number),
        )
        for one in found
    )
    head = ("Clients", "Drafted tokens accepted", "Tokens per step", "Output tokens/s", "Gain", "Interval")
    note = (
        "The artifact's server with its draft over the same server without it, in interleaved rounds on held-out text."
    )
    if release.drafting and release.drafting.apart:
        note = f"The draft's gain was not measured: {release.drafting.apart}."
    return Table("Speculative decoding", head, rows, note)


def how_paired(release: Release) -> str:
    """Sentences: whether the load was interleaved, if not, why, and whether other work took too much of the machine."""
    c = release.comparison
    if not c.speed:
        return ""
    shared = side_by_side.shared_machine(release)
    rounds = c.speed[0].throughput.samples
    how = (
        f"Baseline and artifact were measured one after the other ({c.apart}); changes of the machine in between affect"
        " the ratios but not their intervals."
        if c.apart
        else f"Both servers ran at once and were loaded in turn, {rounds} rounds, so other load on the machine affects"
        " both."
    )
    return f"{how} {shared}".rstrip()
