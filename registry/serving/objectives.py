"""Service level objectives from measured latencies, at bucket bounds of vLLM's histograms.

An objective can be counted only at a bucket bound, so a measured 99th percentile is rounded up to the next one. Burn
rates follow the Google SRE Workbook, chapter 5 ("Alerting on SLOs").
"""

from __future__ import annotations

from qpack.core.side_by_side import run_median
from qpack.core.speed import Latency
from registry.serving.plain_text import as_description
from registry.serving.serving_manifest import Benchmark, Objective

TARGET = 0.99
"""Share of observations within the threshold, for a 99th percentile."""

# Seconds, of vLLM 0.32 (vllm/v1/metrics/buckets.py). A test compares them with a running server.
BUCKETS: dict[str, tuple[float, ...]] = {
    "time_to_first_token_seconds": (
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
        *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
    ),
    "inter_token_latency_seconds": (
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
        *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
    ),
    "e2e_request_latency_seconds": (
        *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
        *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
    ),
}


# The measured figure of each indicator.
_MEASURED = {
    "time_to_first_token_seconds": "ttft_ms",
    "inter_token_latency_seconds": "inter_token_ms",
    "e2e_request_latency_seconds": "end_to_end_ms",
}


def from_latency(latency: Latency, *, server: str, hardware: str) -> tuple[Objective, ...]:
    """One objective per indicator: the 99th percentile at the highest concurrency, the median over its runs, as the
    card and the report show it.

    An indicator beyond the histogram's last bucket has none.
    """
    level = max(latency.levels, key=lambda level: level.concurrency)
    found = []
    for indicator, metric in _MEASURED.items():
        seconds = run_median(level, metric, "p99") / 1000
        threshold = bucket(indicator, seconds)
        if threshold is not None:
            benchmark = Benchmark(
                tool=as_description(latency.tool),
                server=as_description(server),
                hardware=as_description(hardware),
                concurrency=level.concurrency,
                input_tokens=level.input_tokens,
                output_tokens=level.output_tokens,
                p99_seconds=round(seconds, 6),
                runs=len(level.runs),
            )
            found.append(
                Objective.model_validate(
                    {
                        "indicator": indicator,
                        "threshold_seconds": threshold,
                        "target": TARGET,
                        "benchmark": benchmark,
                    }
                )
            )
    return tuple(found)


def bucket(indicator: str, seconds: float) -> float | None:
    """The smallest bucket bound of the indicator's histogram that is at least `seconds`; None if there is none."""
    return next((bound for bound in BUCKETS[indicator] if bound >= seconds), None)
