"""A picture of a release's dashboard: the real Prometheus scrapes a real server under load, and every panel is drawn.

    qpack serve REF --port 8000                                   # in another shell
    python benchmarks/dashboard.py http://127.0.0.1:8000 REF -o docs/images/dashboard.png

Scraped once a second, so that two minutes are enough; queries, legends, units and limits are the dashboard's own, drawn
by matplotlib because Debian and PyPI don't have Grafana. The load: one client at first, then more, then none.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import math
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import matplotlib
import yaml

from evals.server.chat import served_model
from qpack.cli import options
from qpack.serve import served_release
from registry.serving.exporters import grafana, prometheus
from registry.serving.exporters.export import Export

matplotlib.use("agg")
from matplotlib import pyplot
from PIL import Image

STEPS = (1, 2, 4, 8, 4, 0)
"""Clients at once, each for the same time."""
WINDOW = "20s"
COLUMNS = 4
LIMIT = "#b3261e"


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("ref")
    parser.add_argument("-o", "--output", type=Path, default=Path("dashboard.png"))
    parser.add_argument("--profile")
    parser.add_argument("--seconds", type=float, default=25.0, help="how long each number of clients stays")
    asked = parser.parse_args()
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("prometheus is not here (Debian package prometheus)")
    release = served_release.find(options.registry_folder(), asked.ref, asked.profile)
    export = Export(release.manifest, release.reference, release.resolved.digest, release.profile)
    base_url = asked.url.rstrip("/").removesuffix("/v1")
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        _configure(Path(folder), export, base_url)
        command = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                   f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
        watching = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            started = time.time() + 5
            time.sleep(5)
            sent = load(base_url, served_model(base_url), asked.seconds)
            panels = grafana.dashboard(export)["panels"]
            answers = [
                [_range(port, target["expr"], started, time.time()) for target in panel["targets"]] for panel in panels
            ]
        finally:
            watching.terminate()
            watching.wait(30)
    engine = release.manifest.engine
    clients = f"{sent} requests by {', '.join(map(str, STEPS))} clients, {asked.seconds:g} s each"
    server = f"{engine.name} {engine.version} ({release.manifest.hardware})"
    title = f"{release.reference} in {server}: {clients}; rates over {WINDOW}; seconds since the start"
    draw(panels, answers, asked.output, title, started)
    print(f"{asked.output}: {len(panels)} panels, {sent} requests")
    if bare := [panel["title"] for panel, found in zip(panels, answers, strict=True) if not any(found)]:
        raise SystemExit(f"no data: {', '.join(bare)}")


def load(base_url: str, model: str, seconds: float) -> int:
    """Ask with each number of clients of STEPS, prompts that begin alike; how many requests that were."""
    ends = time.monotonic()
    opening = "You answer questions about the sea, in plain words and at some length. " * 8

    def client(number: int, until: float) -> int:
        count = 0
        while time.monotonic() < until:
            body = {"model": model, "prompt": f"{opening}Question {number}.{count}: what is a tide?",
                    "max_tokens": 24 + 24 * (count % 3), "temperature": 0.7}  # fmt: skip
            httpx.post(f"{base_url}/v1/completions", json=body, timeout=300).raise_for_status()
            count += 1
        return count

    sent = 0
    for clients in STEPS:
        ends += seconds
        with concurrent.futures.ThreadPoolExecutor(max(STEPS)) as pool:
            sent += sum(pool.map(client, range(clients), [ends] * clients))
        time.sleep(max(0.0, ends - time.monotonic()))
    return sent


def _configure(folder: Path, export: Export, base_url: str) -> None:
    whole = prometheus.configuration(export, base_url.partition("://")[2])
    whole["global"] = {"scrape_interval": "1s", "evaluation_interval": "5s"}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(whole))
    (folder / "rules.yml").write_text(yaml.safe_dump(prometheus.rules(export)))


def _range(port: int, query: str, start: float, end: float) -> list[dict[str, Any]]:
    """The series of a query: `metric` and `values` (time in seconds, text)."""
    window = query.replace("$__rate_interval", WINDOW)
    asked: dict[str, str | float] = {"query": window, "start": start, "end": end, "step": 1}
    answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/query_range", params=asked, timeout=60).raise_for_status()
    series: list[dict[str, Any]] = answer.json()["data"]["result"]
    return series


def draw(
    panels: list[dict[str, Any]], answers: list[list[list[dict[str, Any]]]], output: Path, title: str, began: float
) -> None:
    """One small plot for each panel, in the dashboard's order; time in seconds since `began`."""
    rows = math.ceil(len(panels) / COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(14, 2.3 * rows), layout="constrained", squeeze=False)
    for plot, panel, found in zip(axes.flat, panels, answers, strict=False):
        highest = 0.0
        for target, series in zip(panel["targets"], found, strict=True):
            for one in series:
                label = target["legendFormat"]
                for name, value in one["metric"].items():
                    label = label.replace("{{" + name + "}}", value)
                values = [float(value) for _, value in one["values"]]
                highest = max([highest, *(value for value in values if math.isfinite(value))])
                plot.plot([at - began for at, _ in one["values"]], values, linewidth=1.3, label=label)
        defaults = panel["fieldConfig"]["defaults"]
        unit = {"s": "seconds", "percentunit": "share", "reqps": "requests/s"}.get(defaults["unit"], "")
        plot.set_title(panel["title"] + (f", {unit}" if unit else ""), loc="left", fontsize=9, fontweight="bold")
        top = 1.3 * highest or 1.0
        for step in defaults.get("thresholds", {}).get("steps", []):
            limit = step["value"]
            if limit is not None and limit <= top:
                plot.axhline(limit, color=LIMIT, linewidth=0.9, linestyle="--", label="limit")
            elif limit is not None:
                # As in Grafana, the data makes the scale.
                plot.set_title(f"limit {limit:g}", loc="right", fontsize=7, color=LIMIT)
        plot.set_ylim(0, top)
        plot.tick_params(labelsize=7)
        plot.grid(color="#dddddd", linewidth=0.5)
        plot.spines[["top", "right"]].set_visible(False)
        if plot.get_legend_handles_labels()[0]:
            plot.legend(fontsize=7, frameon=False, ncols=4, loc="upper left", handlelength=1.2, columnspacing=1.0)
    for plot in list(axes.flat)[len(panels) :]:
        plot.set_visible(False)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    figure.savefig(output, dpi=75, metadata={"Software": None})
    with Image.open(output) as picture:
        few = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(output, optimize=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
