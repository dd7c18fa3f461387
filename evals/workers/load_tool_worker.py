"""Runs GuideLLM or inference-perf against a server, one level after the other, and reads the report that each writes.

Runs inside the environment of the tool: standard library, and the tool's own command.
"""

import json
import math
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import qpack_worker
from load_tool_job import Answer, Job, RawToolRun, Times

VARIABLES = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false", "NO_COLOR": "1"}


def guidellm(job, level, folder):
    """(command, report) of one level. GuideLLM sends `ignore_eos` and the number of tokens by itself."""
    server = job.server
    profile = (
        {"kind": "concurrent", "streams": [level.concurrency]}
        if level.rate is None
        else {"kind": "poisson", "rate": [level.rate]}
    )
    # The scenario's own file type is JSON; http2 is for TLS, which a server on this machine doesn't have.
    spec = {
        "backend": {
            "kind": "openai_http", "target": server.base_url, "model": server.model, "http2": False,
            "request_format": "/v1/completions", "extras": {"body": {"temperature": 0}},
        },
        "profile": profile,
        "constraints": [{"kind": "max_requests", "count": level.num_prompts}],
        "tokenizer": {"kind": "huggingface_auto", "model": server.tokenizer},
        "data": [
            {"kind": "synthetic_text", "prompt_tokens": job.input_tokens, "output_tokens": job.output_tokens}
        ],
        "seed": {"kind": "static", "value": job.seed},
        "outputs": [{"kind": "json", "path": str(folder / "report.json")}],
    }  # fmt: skip
    config = folder / "scenario.json"
    config.write_text(json.dumps({"spec": spec}))
    return ["guidellm", "run", "-c", str(config), "--disable-console-interactive"], folder / "report.json"


def of_guidellm(report):
    """A run from GuideLLM's report (version 2): its figures of the answered requests."""
    (run,) = report["benchmarks"]
    figures, totals = run["metrics"], run["metrics"]["request_totals"]

    def answered(name):
        return figures[name]["successful"]

    def times(name, factor=1.0):
        found = answered(name)
        if not found["count"]:
            return None
        return Times(found["mean"] * factor, *(found["percentiles"][p] * factor for p in ("p50", "p90", "p95", "p99")))

    return RawToolRun(
        seconds=float(run["duration"]),
        completed=int(totals["successful"]),
        failed=int(totals["errored"]) + int(totals["incomplete"]),
        requests_per_second=float(answered("requests_per_second")["mean"]),
        output_tokens_per_second=float(answered("output_tokens_per_second")["mean"]),
        ttft_ms=times("time_to_first_token_ms"),
        per_token_ms=times("inter_token_latency_ms"),
        end_to_end_ms=times("request_latency", 1000.0),
    )


def inference_perf(job, level, folder):
    """(command, report) of one level."""
    server = job.server

    def fixed(tokens):
        return {
            "type": "fixed", "min": tokens, "max": tokens, "mean": tokens, "std_dev": 0,
            "total_count": level.num_prompts,
        }  # fmt: skip

    load = (
        {"type": "concurrent", "stages": [{"num_requests": level.num_prompts, "concurrency_level": level.concurrency}]}
        if level.rate is None
        else {"type": "poisson", "stages": [{"rate": level.rate, "duration": max(1, math.ceil(job.rate_seconds))}]}
    )
    config = {
        "api": {"type": "completion", "streaming": True},
        "data": {
            "type": "random",
            "input_distribution": fixed(job.input_tokens),
            "output_distribution": fixed(job.output_tokens),
        },
        "load": {**load, "num_workers": 1, "base_seed": job.seed},
        "server": {"type": "vllm", "model_name": server.model, "base_url": server.base_url, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": server.tokenizer},
        # The text of random tokens has another count once it is tokenized again.
        "report": {"request_lifecycle": {"per_stage": True, "use_server_output_tokens": True}},
        "storage": {"local_storage": {"path": str(folder / "report")}},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))  # YAML holds JSON
    return ["inference-perf", "-c", str(path)], folder / "report" / "stage_0_lifecycle_metrics.json"


def of_inference_perf(report):
    """A run from inference-perf's report of a stage. Times there are in seconds."""
    good, failed = report["successes"], report["failures"]
    found = good.get("latency") or {}

    def times(name):
        one = found.get(name)
        if not one:
            return None
        return Times(*(float(one[p]) * 1000 for p in ("mean", "median", "p90", "p95", "p99")))

    rates = good.get("throughput") or {}
    return RawToolRun(
        seconds=float(report["benchmark_time_seconds"]),
        completed=int(good["count"]),
        failed=int(failed["count"]),
        requests_per_second=float(rates.get("requests_per_sec", 0.0)),
        output_tokens_per_second=float(rates.get("output_tokens_per_sec", 0.0)),
        ttft_ms=times("time_to_first_token"),
        per_token_ms=times("time_per_output_token"),
        end_to_end_ms=times("request_latency"),
    )


TOOLS = {"guidellm": (guidellm, of_guidellm), "inference-perf": (inference_perf, of_inference_perf)}


def run(job, out):
    """All levels."""
    write, read = TOOLS[job.tool]
    found = []
    for number, level in enumerate(job.levels):
        qpack_worker.progress(number, len(job.levels), f"levels by {job.tool}")
        folder = Path(out) / f"level-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        (program, *arguments), report = write(job, level, folder)
        own = Path(sys.executable).with_name(program)
        done = subprocess.run(
            [sys.executable, "-P", own, *arguments], cwd=folder, env={**os.environ, **VARIABLES}, check=False
        )
        if done.returncode != 0 or not report.exists():
            qpack_worker.fail(f"{job.tool} ended with {done.returncode} and wrote no report", "See the log.")
        try:
            found.append(read(json.loads(report.read_text())))
        except (KeyError, TypeError, ValueError) as error:
            qpack_worker.fail(f"{job.tool}'s report isn't as version {version(job.tool)} writes it: {error!r}")
    return Answer(f"{job.tool} {version(job.tool)}", tuple(found))


if __name__ == "__main__":
    qpack_worker.main(run, Job)
