"""A Grafana dashboard: latency with objectives, load, cache, errors. All queries are PromQL.

https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from registry.core.documents import Document, Json
from registry.serving import metrics
from registry.serving.exporters import quoting
from registry.serving.exporters.export import Export, Files, name_of
from registry.serving.exporters.prometheus import acceptance, of

FILES = "`dashboard.json`"
MODEL = ""
NEEDS_REPOSITORY = False
IMAGES: tuple[str, ...] = ()

_SOURCE = {"type": "prometheus", "uid": "${source}"}
_WINDOW = "$__rate_interval"


def files(export: Export) -> Files:
    """`dashboard.json`, for import."""
    return {"dashboard.json": json.dumps(dashboard(export), indent=2) + "\n"}


def dashboard(export: Export) -> Document:
    """The dashboard's JSON model."""
    panels = [_drawn(panel, number) for number, panel in enumerate(_panels(export))]
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return {
        # At most 40 characters.
        "uid": f"qpack-{name_of(export, 34)}",
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
    """Every query of the dashboard, with Grafana's window replaced by a minute, to check them against a Prometheus."""
    return [query.replace(_WINDOW, "1m") for panel in _panels(export) for query, _ in panel.lines]


@dataclass(frozen=True)
class _Panel:
    """A time series: (query, legend) for each line. `limits` are drawn as lines too."""

    title: str
    unit: str
    lines: list[tuple[str, str]]
    limits: tuple[float, ...] = ()


def _panels(export: Export) -> list[_Panel]:
    m = metrics
    goals = export.manifest.objectives

    def latency(title: str, metric: str) -> _Panel:
        lines = [
            (
                f"histogram_quantile({q}, sum by (le) (rate({of(export, f'{metric}_bucket')}[{_WINDOW}])))",
                f"p{q * 100:g}",
            )
            for q in (0.5, 0.95, 0.99)
        ]
        limits = sorted({goal.threshold_seconds for goal in goals if metric == f"vllm:{goal.indicator}"})
        return _Panel(title, "s", lines, tuple(limits))

    def rate(metric: str, labels: str = "", by: str = "job") -> str:
        return f"sum by ({by}) (rate({of(export, metric, labels)}[{_WINDOW}]))"

    panels = [
        latency("Time to first token", m.TIME_TO_FIRST_TOKEN),
        latency("Time between tokens", m.INTER_TOKEN),
        latency("Whole request", m.END_TO_END),
        latency("Time in the queue", m.QUEUE_TIME),
        _Panel("Requests", "short", [(of(export, m.RUNNING), "running"), (of(export, m.WAITING), "waiting")]),
        _Panel("Tokens", "short", [(rate(m.PROMPT_TOKENS), "prompt/s"), (rate(m.GENERATION_TOKENS), "output/s")]),
        _Panel("KV cache", "percentunit", [(of(export, m.KV_CACHE_USAGE), "used")], (0.95,)),
        _Panel("Prefix cache", "percentunit", [(f"{rate(m.PREFIX_HITS)} / {rate(m.PREFIX_QUERIES)}", "tokens found")]),
        _Panel("Finished", "reqps", [(rate(m.SUCCESS, by="finished_reason"), "{{finished_reason}}")]),
        _Panel("HTTP", "reqps", [(rate(m.HTTP_REQUESTS, by="status"), "{{status}}")]),
        _Panel("Preemptions", "short", [(rate(m.PREEMPTIONS), "per second")]),
    ]
    if export.manifest.json_argument("speculative-config"):
        accepted = acceptance(export, "$__rate_interval")
        panels.append(_Panel("Speculative decoding", "percentunit", [(accepted, "draft tokens accepted")]))
    return panels


def _drawn(panel: _Panel, number: int) -> Document:
    """A panel as Grafana has it: two in a row."""
    custom: dict[str, Json] = {"fillOpacity": 5, "showPoints": "never"}
    defaults: dict[str, Json] = {"unit": panel.unit, "min": 0, "custom": custom}
    if panel.limits:
        custom["thresholdsStyle"] = {"mode": "line"}
        steps: list[Json] = [{"color": "red", "value": limit} for limit in panel.limits]
        steps.insert(0, {"color": "green", "value": None})
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(65 + i), "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
            for i, (expression, legend) in enumerate(panel.lines)
        ],
        "id": number + 1,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
    }
