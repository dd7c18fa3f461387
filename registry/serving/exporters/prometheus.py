"""Prometheus: scrape configuration, recording rules and alerts, from the manifest and its objectives.

Alerts on objectives are multi-window burn rates after the Google SRE Workbook, chapter 5: both a long and a short
window have to burn the error budget, so that alerts start and end soon.
https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/
"""

from __future__ import annotations

from dataclasses import dataclass

from registry.core.documents import Document
from registry.serving import metrics
from registry.serving.exporters import quoting
from registry.serving.exporters.export import Export, Files, heading, name_of, to_yaml
from registry.serving.serving_manifest import Objective

FILES = "`prometheus.yml`, `rules.yml`"
MODEL = ""
NEEDS_REPOSITORY = False
IMAGES: tuple[str, ...] = ()

SCRAPE_SECONDS = 15


@dataclass(frozen=True)
class Burn:
    """A burn rate: `factor` times the even use of the budget, over both windows."""

    factor: float
    long: str
    short: str
    severity: str


# The workbook's table for a budget of 30 days: 2 % of it in an hour, 5 % in six, 10 % in three days.
BURNS = (Burn(14.4, "1h", "5m", "page"), Burn(6, "6h", "30m", "page"), Burn(1, "3d", "6h", "ticket"))
WINDOWS = tuple(dict.fromkeys(window for burn in BURNS for window in (burn.short, burn.long)))


def files(export: Export) -> Files:
    """`prometheus.yml` for a server on this machine, and `rules.yml`."""
    return {
        "prometheus.yml": heading(export) + to_yaml(configuration(export, f"127.0.0.1:{export.port}")),
        "rules.yml": heading(export, "Check: promtool check rules rules.yml") + to_yaml(rules(export)),
    }


def configuration(export: Export, target: str) -> Document:
    """`prometheus.yml` that scrapes `target` (host:port). Rules and dashboard select the server by its job."""
    job: Document = {
        "job_name": name_of(export),
        "metrics_path": "/metrics",
        "static_configs": [{"targets": [target]}],
    }
    interval = f"{SCRAPE_SECONDS}s"
    return {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": ["rules.yml"],
        "scrape_configs": [job],
    }


def rules(export: Export) -> Document:
    """The rules file: the slow share of every objective over every window, and the alerts."""
    name = name_of(export)
    groups: list[Document] = []
    if export.manifest.objectives:
        recorded = [_slow_share(export, goal, window) for goal in export.manifest.objectives for window in WINDOWS]
        burns = [_burn(export, goal, burn) for goal in export.manifest.objectives for burn in BURNS]
        groups.append({"name": f"{name}-objectives", "rules": [*recorded, *burns]})
    groups.append({"name": f"{name}-server", "rules": list(_server(export))})
    return {"groups": groups}


def of(export: Export, metric: str, labels: str = "") -> str:
    """A selector of this server's series."""
    more = f", {labels}" if labels else ""
    return f'{metric}{{job="{name_of(export)}"{more}}}'


def recorded(goal: Objective, window: str) -> str:
    """The name of the recorded share of observations above the threshold, which is its label: an indicator may have
    several objectives.
    """
    return f"job:vllm_{goal.indicator}:slow_share_{window}"


def _threshold(goal: Objective) -> str:
    return f"{goal.threshold_seconds:g}"


def _slow_share(export: Export, goal: Objective, window: str) -> Document:
    metric = f"vllm:{goal.indicator}"
    bound = f'le="{goal.threshold_seconds}"'
    within = f"sum by (job) (rate({of(export, f'{metric}_bucket', bound)}[{window}]))"
    every = f"sum by (job) (rate({of(export, f'{metric}_count')}[{window}]))"
    labels = {"threshold": _threshold(goal)}
    return {"record": recorded(goal, window), "expr": f"1 - {within} / {every}", "labels": labels}


# What the observations of each histogram are: a request has one first token and many waits between tokens.
_COUNTED = {
    "time_to_first_token_seconds": "requests waited more than {:g} s for the first token",
    "inter_token_latency_seconds": "waits between two tokens took more than {:g} s",
    "e2e_request_latency_seconds": "requests took more than {:g} s",
}


def _burn(export: Export, goal: Objective, burn: Burn) -> Document:
    budget = round(1 - goal.target, 6)
    limit = f"{round(burn.factor * budget, 6)}"
    label = f'threshold="{_threshold(goal)}"'
    long, short = (of(export, recorded(goal, window), label) for window in (burn.long, burn.short))
    load = goal.benchmark
    median = "" if load.runs is None else f", the median of {load.runs} runs" if load.runs > 1 else ", of one run"
    where = quoting.go_template(f"{load.server} on {load.hardware}")
    slow = _COUNTED[goal.indicator].format(goal.threshold_seconds)
    return {
        "alert": f"Vllm{_camel(goal.indicator)}BudgetBurn",
        "expr": f"{long} > {limit} and {short} > {limit}",
        "labels": {"severity": burn.severity, "window": burn.long},
        "annotations": {
            "summary": f"{{{{ $labels.job }}}}: {{{{ $value | humanizePercentage }}}} of {slow} "
            f"in the last {burn.long}",
            "description": f"The objective is {goal.target:.0%} within {goal.threshold_seconds:g} s. The benchmark's "
            f"99th percentile was {load.p99_seconds:.3g} s{median}, at {load.concurrency} concurrent requests "
            f"({load.input_tokens} tokens in, {load.output_tokens} out, {where}).",
        },
    }


def _server(export: Export) -> tuple[Document, ...]:
    m = metrics
    errors = f"""sum by (job) (rate({of(export, m.HTTP_REQUESTS, 'status="5xx"')}[5m]))"""
    requests = f"sum by (job) (rate({of(export, m.HTTP_REQUESTS)}[5m]))"
    found = [
        _alert("VllmDown", of(export, "up") + " == 0", "5m", "page", "can't be scraped",
               "The server is down, still starting, or not reachable by Prometheus."),
        _alert("VllmErrors", f"{errors} / {requests} > 0.01", "5m", "page",
               "{{ $value | humanizePercentage }} of requests end in a server error", "See the server's log."),
        _alert("VllmQueueNeverEmpty", f"min_over_time({of(export, m.WAITING)}[5m]) > 0", "5m", "ticket",
               "the queue has not been empty for 10 minutes (at least {{ $value }} requests)",
               "The load exceeds this server: add replicas, or raise max-num-seqs and the KV cache."),
        _alert("VllmKvCachePressure", f"avg_over_time({of(export, m.KV_CACHE_USAGE)}[10m]) > 0.95", "5m", "ticket",
               "the KV cache is {{ $value | humanizePercentage }} full",
               "New requests wait and running ones are preempted: enlarge the cache, or limit requests."),
        _alert("VllmPreemptions", f"rate({of(export, m.PREEMPTIONS)}[10m]) > 0", "10m", "ticket",
               "{{ $value | humanize }} requests per second are preempted and recomputed",
               "The KV cache is too small for the admitted requests: lower max-num-seqs or enlarge it."),
    ]  # fmt: skip
    if export.manifest.json_argument("speculative-config"):
        now, before = (acceptance(export, window) for window in ("1h", "1d"))
        found.append(
            _alert("VllmAcceptanceFallen", f"{now} < 0.7 * {before}", "30m", "ticket",
                   "{{ $value | humanizePercentage }} of draft tokens are accepted, below 70% of the last day's rate",
                   "Requests have changed, or the draft model no longer fits: speculative decoding may not help.")
        )  # fmt: skip
    return tuple(found)


def acceptance(export: Export, window: str) -> str:
    """The share of draft tokens that were accepted."""
    accepted = f"sum by (job) (rate({of(export, metrics.ACCEPTED_TOKENS)}[{window}]))"
    return f"{accepted} / sum by (job) (rate({of(export, metrics.DRAFT_TOKENS)}[{window}]))"


def _alert(name: str, expression: str, wait: str, severity: str, summary: str, description: str) -> Document:
    return {
        "alert": name,
        "expr": expression,
        "for": wait,
        "labels": {"severity": severity},
        "annotations": {"summary": f"{{{{ $labels.job }}}}: {summary}", "description": description},
    }


def _camel(text: str) -> str:
    return "".join(part.capitalize() for part in text.removesuffix("_seconds").split("_"))
