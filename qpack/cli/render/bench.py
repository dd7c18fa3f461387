"""`qpack bench`: the performance table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from evals.comparison import speculative
from evals.measure.bench import Benched
from evals.server import footprint
from qpack.cli.render.text import emit, table
from qpack.core.errors import EvaluateError
from qpack.core.problems import FILE_SYSTEM
from qpack.core.speed import Level, OpenLevel, ToolRun

_GIB = 2**30


def benched(found: Sequence[Benched], output: Path | None, *, as_json: bool) -> None:
    """The table, and the whole of it as JSON in `output`."""
    if output is not None:
        try:
            output.write_text("[" + ",\n".join(one.model_dump_json(indent=1) for one in found) + "]\n")
        except OSError as error:
            raise EvaluateError(
                FILE_SYSTEM, f"{output}: {error.strerror}", hint="Name another file with --output."
            ) from error
    if as_json:
        emit([one.model_dump(mode="json") for one in found])
        return
    rows = [row for one in found for row in _rows(one)]
    head = ("model", "quantization", "weights GiB", "KV tokens", "load")
    table((*head, "TTFT p50/p95/p99 ms", "TPOT p50 ms", "output tok/s", "req/s", "goodput req/s", "failed"), rows)
    for one in found:
        _notes(one)
    if len(found) > 1:
        print("\nThe models were measured one after the other: other load on the machine affects the figures.")


def _rows(one: Benched) -> list[tuple[str, ...]]:
    held = one.footprint
    loaded = held.weights_loaded_bytes if held else None
    name = f"{one.model} (random weights)" if one.random_weights else one.model
    about = (
        name,
        one.quantization,
        f"{loaded / _GIB:.2f}" if loaded else "",
        f"{held.kv_cache_tokens:,}" if held else "",
    )
    levels: list[tuple[str, Level | OpenLevel]] = [
        *((f"{level.concurrency} at once", level) for level in one.latency.levels),
        *((f"{level.rate:g} requests/s", level) for level in one.latency.open_levels),
    ]
    return [(*(about if not i else ("",) * 4), load, *_figures(level)) for i, (load, level) in enumerate(levels)]


def _figures(level: Level | OpenLevel) -> tuple[str, ...]:
    def middle(values: Sequence[float]) -> str:
        return f"{statistics.median(values):,.1f}"

    runs = level.runs
    first = "/".join(middle([getattr(run.ttft_ms, p) for run in runs]) for p in ("p50", "p95", "p99"))
    good = [run.good / run.seconds for run in runs if run.good is not None]
    return (
        first,
        middle([run.time_per_output_token_ms.p50 for run in runs]),
        middle([run.output_tokens_per_second for run in runs]),
        f"{statistics.median(run.requests_per_second for run in runs):.2f}",
        f"{statistics.median(good):.2f}" if good else "",
        str(sum(run.failed for run in runs)),
    )


def _level(run: ToolRun) -> str:
    return f"{run.concurrency} at once" if run.rate is None else f"{run.rate:g} requests/s"


def _by_tool(run: ToolRun) -> str:
    """The figures of another load generator."""
    first = "/".join(f"{value:,.1f}" for value in (run.ttft_ms.p50, run.ttft_ms.p95, run.ttft_ms.p99))
    return (
        f"TTFT {first} ms, {run.per_token_ms.p50:,.1f} ms a token, {run.output_tokens_per_second:,.1f} output tok/s,"
        f" {run.requests_per_second:.2f} req/s, {run.failed} failed"
    )


def _drafts(one: Benched) -> None:
    """Acceptance and gain of the server's draft model."""
    for level in one.latency.levels:
        rate, length = speculative.accepted(level.runs)
        if rate is not None:
            print(
                f"  draft, {level.concurrency} at once, random tokens: {rate:.0%} of the drafted tokens accepted,"
                f" {length:.2f} tokens per step"
            )
    if one.drafting and one.drafting.apart:
        print(f"  the draft's gain was not measured: {one.drafting.apart}")
    for found in speculative.read(one.drafting) if one.drafting else ():
        print(f"  with and without the draft, interleaved: {speculative.sentence(found)}")


def _needed(one: Benched) -> int:
    """Tokens in flight in the largest closed loop; without one, a single request's."""
    levels = one.latency.levels or one.latency.open_levels
    return max(getattr(level, "concurrency", 1) * (level.input_tokens + level.output_tokens) for level in levels)


def _notes(one: Benched) -> None:
    on = f" on {one.hardware.name}" if one.hardware else ""
    print(f"\n{one.model}: {one.server}{on}, {one.latency.tool}")
    for work in (one.latency.other_work, one.drafting.other_work if one.drafting else None):
        if work is not None and work.disturbs:
            print(f"  {work} during the load: these speeds say nothing about the model")
    if one.footprint:
        held = one.footprint
        parts = (
            ("activations", held.activation_bytes),
            ("CUDA graphs", held.graph_bytes),
            ("KV cache", held.kv_cache_bytes),
            ("resident at most", held.resident_bytes),
        )
        print("  " + ", ".join(f"{name} {size / _GIB:.2f} GiB" for name, size in parts if size))
        print(f"  longest request that fits: {held.longest_context_tokens:,} tokens")
        tokens = _needed(one)
        fits = footprint.smallest(held, tokens)
        if fits:
            print(f"  the smallest GPU that holds it and {tokens:,} tokens of KV cache: {fits}")
    if one.plain:
        levels = {level.concurrency: level for level in one.latency.levels}
        for batch in one.plain.batches:
            rate = statistics.median(batch.output_tokens_per_second)
            served = statistics.median(run.output_tokens_per_second for run in levels[batch.batch].runs)
            rates = f"{one.plain.tool}, {batch.batch} at once: {rate:,.1f} output tok/s"
            print(f"  {rates}; vLLM has {served / rate:.1f} times that")
    for load in one.loads:
        for run in load.runs:
            print(f"  {load.tool}, {_level(run)}: {_by_tool(run)}")
    _drafts(one)
    if one.latency.prefix:
        seen = one.latency.prefix
        print(
            f"  a shared prefix of {seen.shared_tokens} tokens: TTFT {seen.hit_ttft_ms:.1f} ms cached,"
            f" {seen.miss_ttft_ms:.1f} ms when not (medians of {seen.requests} requests)"
        )
