"""A Grafana dashboard: latency against the objectives, load, cache, errors. Every panel's query is PromQL.

https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

import json
from typing import Any

from registry.serving import metrics
from registry.serving.exporters import quoting
from registry.serving.exporters.export import Export, Files, name_of
from registry.serving.exporters.prometheus import acceptance, of

ABOUT = "a dashboard"
NEEDS_REPOSITORY = False

_SOURCE = {"type": "prometheus", "uid": "${source}"}
_WINDOW = "$__rate_interval"


def files(export: Export) -> Files:
    """`dashboard.json`, to import."""
    return {"dashboard.json": json.dumps(dashboard(export), indent=2) + "\n"}


def dashboard(export: Export) -> dict[str, Any]:
    """The dashboard's JSON model."""
    panels = [
        {
            **panel,
            "id": number,
            "gridPos": {"h": 8, "w": 12, "x": 12 * ((number - 1) % 2), "y": 8 * ((number - 1) // 2)},
        }
        for number, panel in enumerate(_panels(export), 1)
    ]
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return {
        "uid": f"qpack-{name_of(export)}"[:40],
        "title": quoting.grafana(f"vLLM: {export.manifest.model.name}", "model.name"),
        "description": quoting.grafana(
            f"{export.reference} ({export.digest}), profile {export.profile}", f"profiles.{export.profile}"
        ),
        "tags": ["vllm", "qpack"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [source]},
        "panels": panels,
    }


def queries(export: Export) -> list[str]:
    """Every query of the dashboard, with Grafana's window filled in, for whoever checks them against a Prometheus."""
    return [
        target["expr"].replace(_WINDOW, "1m") for panel in dashboard(export)["panels"] for target in panel["targets"]
    ]


def _panels(export: Export) -> list[dict[str, Any]]:
    m = metrics
    limits = {f"vllm:{goal.indicator}": goal.threshold_seconds for goal in export.manifest.objectives}

    def latency(title: str, metric: str) -> dict[str, Any]:
        lines = [
            (
                f"histogram_quantile({q}, sum by (le) (rate({of(export, f'{metric}_bucket')}[{_WINDOW}])))",
                f"p{q * 100:g}",
            )
            for q in (0.5, 0.95, 0.99)
        ]
        return _panel(title, "s", lines, limit=limits.get(metric))

    def rate(metric: str, labels: str = "", by: str = "job") -> str:
        return f"sum by ({by}) (rate({of(export, metric, labels)}[{_WINDOW}]))"

    panels = [
        latency("Time to first token", m.TIME_TO_FIRST_TOKEN),
        latency("Time between tokens", m.INTER_TOKEN),
        latency("Whole request", m.END_TO_END),
        latency("Time in the queue", m.QUEUE_TIME),
        _panel("Requests", "short", [(of(export, m.RUNNING), "running"), (of(export, m.WAITING), "waiting")]),
        _panel("Tokens", "short", [(rate(m.PROMPT_TOKENS), "prompt/s"), (rate(m.GENERATION_TOKENS), "output/s")]),
        _panel("KV cache", "percentunit", [(of(export, m.KV_CACHE_USAGE), "used")], limit=0.95),
        _panel("Prefix cache", "percentunit", [(f"{rate(m.PREFIX_HITS)} / {rate(m.PREFIX_QUERIES)}", "tokens found")]),
        _panel("Finished", "reqps", [(rate(m.SUCCESS, by="finished_reason"), "{{finished_reason}}")]),
        _panel("HTTP", "reqps", [(rate(m.HTTP_REQUESTS, by="status"), "{{status}}")]),
        _panel("Preemptions", "short", [(rate(m.PREEMPTIONS), "a second")]),
    ]
    if export.manifest.json_argument("speculative-config"):
        accepted = acceptance(export, "$__rate_interval")
        panels.append(_panel("Speculative decoding", "percentunit", [(accepted, "drafted tokens accepted")]))
    return panels


def _panel(title: str, unit: str, lines: list[tuple[str, str]], limit: float | None = None) -> dict[str, Any]:
    """A time series; `limit` is drawn as a line."""
    defaults: dict[str, Any] = {"unit": unit, "min": 0, "custom": {"fillOpacity": 5, "showPoints": "never"}}
    if limit is not None:
        defaults["custom"]["thresholdsStyle"] = {"mode": "line"}
        steps: list[dict[str, Any]] = [{"color": "green", "value": None}, {"color": "red", "value": limit}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return {
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(65 + i), "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
            for i, (expression, legend) in enumerate(lines)
        ],
    }
