"""A release's evidence as parameters and metrics of a run. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from qpack.core.records import Release
from qpack.core.side_by_side import mean_rate, run_median

_ODD = re.compile(r"[^A-Za-z0-9_\-. /]")


@dataclass(frozen=True)
class Evidence:
    """What a run shows: `params` and `tags` are text."""

    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


def of(release: Release) -> Evidence:
    """Of the artifact, and of the baseline under `baseline/`. Metrics that aren't finite are left out."""
    made, told = release.quantized, release.comparison
    params = {
        "source": release.source.resolved,
        "method": made.method,
        "scheme": made.scheme,
        "group_size": str(made.group_size or ""),
        "engine": f"{made.engine} {made.engine_version}",
        "hardware": release.artifact.hardware.name,
        "server": release.artifact.server,
    }
    metrics = {
        "weights_bytes": float(made.weights_bytes),
        "baseline/weights_bytes": float(release.source.weights_bytes),
        "quantize_seconds": made.seconds,
        "perplexity": told.perplexity_artifact,
        "baseline/perplexity": told.perplexity_baseline,
        "perplexity_ratio": told.perplexity_ratio.value,
        "flip_rate": told.flip_rate.value,
        "accuracy_drop": told.accuracy_drop.value,
    }
    for prefix, evidence in (("", release.artifact), ("baseline/", release.baseline)):
        for task in evidence.accuracy.tasks:
            scores = [sample.score for sample in task.samples]
            if scores:
                metrics[f"{prefix}accuracy/{task.task}"] = math.fsum(scores) / len(scores)
        for level in evidence.latency.levels:
            at = f"{prefix}clients_{level.concurrency}"
            metrics[f"{at}/output_tokens_per_second"] = mean_rate(level)
            metrics[f"{at}/ttft_p95_ms"] = run_median(level, "ttft_ms", "p95")
    tags = {"qpack.verdict": release.verdict.outcome, "qpack.version_of_qpack": release.qpack_version}
    for gate in release.verdict.gates:
        tags[f"qpack.gate.{gate.gate}"] = gate.outcome
    return Evidence(
        {key: value[:500] for key, value in params.items() if value},
        {_ODD.sub("_", key)[:250]: value for key, value in metrics.items() if math.isfinite(value)},
        {_ODD.sub("_", key)[:250]: value[:500] for key, value in tags.items()},
    )
