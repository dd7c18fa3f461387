"""The metrics that alerts, dashboards and drift need from vLLM's /metrics: the contract of a serving manifest.

Names as Prometheus stores them, of vLLM 0.32 (https://docs.vllm.ai/en/stable/usage/metrics.html). A test compares them
with a running server.
"""

from __future__ import annotations

from collections.abc import Iterable

from registry.serving.serving_manifest import ServingManifest

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_CACHE_USAGE = "vllm:kv_cache_usage_perc"
CACHE_CONFIG = "vllm:cache_config_info"
PREEMPTIONS = "vllm:num_preemptions_total"
PROMPT_TOKENS = "vllm:prompt_tokens_total"
GENERATION_TOKENS = "vllm:generation_tokens_total"
SUCCESS = "vllm:request_success_total"
PREFIX_QUERIES = "vllm:prefix_cache_queries_total"
PREFIX_HITS = "vllm:prefix_cache_hits_total"
TIME_TO_FIRST_TOKEN = "vllm:time_to_first_token_seconds"
INTER_TOKEN = "vllm:inter_token_latency_seconds"
END_TO_END = "vllm:e2e_request_latency_seconds"
QUEUE_TIME = "vllm:request_queue_time_seconds"
DRAFT_TOKENS = "vllm:spec_decode_num_draft_tokens_total"
ACCEPTED_TOKENS = "vllm:spec_decode_num_accepted_tokens_total"
HTTP_REQUESTS = "http_requests_total"

HISTOGRAMS = (TIME_TO_FIRST_TOKEN, INTER_TOKEN, END_TO_END, QUEUE_TIME)
_ALWAYS = (
    *(RUNNING, WAITING, KV_CACHE_USAGE, CACHE_CONFIG, PREEMPTIONS, PROMPT_TOKENS, GENERATION_TOKENS, SUCCESS),
    *(PREFIX_QUERIES, PREFIX_HITS, HTTP_REQUESTS),
    *(f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "count", "sum")),
)


def contract(manifest: ServingManifest) -> tuple[str, ...]:
    """The metrics of a server started from `manifest`; those of speculative decoding only if it is on."""
    speculative = (DRAFT_TOKENS, ACCEPTED_TOKENS) if manifest.json_argument("speculative-config") else ()
    return (*_ALWAYS, *speculative)


def names(text: str) -> frozenset[str]:
    """The names of all samples in a Prometheus text (exposition format 0.0.4)."""
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return frozenset(line.partition("{")[0].partition(" ")[0] for line in lines)


def missing(wanted: Iterable[str], text: str) -> tuple[str, ...]:
    """The `wanted` names that a Prometheus text lacks, in order."""
    there = names(text)
    return tuple(name for name in wanted if name not in there)
