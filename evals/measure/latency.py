"""Latency and throughput under load: `vllm bench serve` against the running server.

Closed loop: `concurrency` requests are in flight; the next is sent when one is answered. Open loop: requests arrive as
a Poisson process of a mean rate, whatever the server does, like those of users. Prompts are random tokens of one
length, and every answer has the same length (`ignore_eos`), so two models do the same work. Times are as vLLM defines
them: TTFT from sending to the first token's chunk, inter-token from chunk to chunk, time per output token their mean
per request, end to end from sending to the last chunk.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from evals.measure.eval_specs import Load, PerformanceSpec
from evals.server.codes import SERVER_ANSWER
from evals.server.session import Session, Workspace
from evals.workers.vllm_bench_job import Answer, Job, Prefix, PrefixRuns, RawRun, Requests, Server
from qpack.core.errors import EvaluateError
from qpack.core.speed import Drafts, Latency, Level, Objective, OpenLevel, OtherWork, Percentiles, PrefixEffect, Run
from qpack.runtime import other_work, worker

WORKER = Path(__file__).parents[1] / "workers" / "vllm_bench_worker.py"


def measure(session: Session, spec: PerformanceSpec, *, own_server: bool = True) -> Latency:
    """Put the spec's load on the server, and see what other work takes of the machine meanwhile. Of a server that
    qpack didn't start (`own_server`) that isn't known.

    Raises EvaluateError when a level has no answered request or answers of another length.
    """
    load = spec.load
    job = Job(
        server=Server(session.endpoint.base_url, session.endpoint.model, str(session.tokenizer.resolve())),
        levels=tuple(load.levels()),
        prefix=Prefix(load.prefix_tokens, load.prefix_requests) if load.prefix_tokens else None,
        repeats=load.repeats,
        max_repeats=max(load.repeats, load.max_repeats),
        precision=load.precision,
        requests=Requests(load.input_tokens, load.output_tokens, warmups=load.warmups, seed=spec.seed),
    )
    with other_work.watch() as others:
        answer = worker.run(WORKER, job, Answer, session.workspace.call("vllm", "bench"))
    found = read(answer, load)
    if not own_server:
        return found
    report_disturbance(session.workspace, others.found)
    return found.model_copy(update={"other_work": others.found})


def report_disturbance(workspace: Workspace, found: OtherWork | None) -> None:
    """Warn of other work that takes too much of the machine."""
    if found is not None and found.disturbs:
        workspace.report(f"warning: {found} during the load: these speeds say nothing about the model")


def read(answer: Answer, load: Load) -> Latency:
    """The worker's raw times (seconds) as percentiles (milliseconds), level by level."""
    levels = worker.paired(list(load.levels()), answer.levels, EvaluateError)
    closed = [(one.concurrency, runs) for one, runs in levels if one.concurrency is not None]
    opened = [(one.rate, runs) for one, runs in levels if one.rate is not None]
    shape = {"input_tokens": load.input_tokens, "output_tokens": load.output_tokens}
    return Latency(
        tool=answer.tool,
        levels=tuple(
            Level(concurrency=level, runs=tuple(run_of(run, f"concurrency {level}", load) for run in runs), **shape)
            for level, runs in closed
        ),
        open_levels=tuple(
            OpenLevel(rate=rate, runs=tuple(run_of(run, f"{rate:g} requests/s", load) for run in runs), **shape)
            for rate, runs in opened
        ),
        prefix=_prefix(answer.prefix, load) if answer.prefix else None,
        objective=load.objective,
    )


def percentiles(seconds: Sequence[float]) -> Percentiles:
    """Mean and percentiles in milliseconds (linear interpolation, as vLLM reports them) of times in seconds."""
    ms = np.asarray(seconds, dtype=np.float64) * 1000.0
    p50, p90, p95, p99 = np.percentile(ms, [50, 90, 95, 99])
    return Percentiles(mean=float(ms.mean()), p50=float(p50), p90=float(p90), p95=float(p95), p99=float(p99))


def per_output_token(ttft: Sequence[float], end_to_end: Sequence[float], output_tokens: int) -> list[float]:
    """Each request's time after its first token, over the tokens after it; in the unit of the times."""
    return [(end - first) / (output_tokens - 1) for first, end in zip(ttft, end_to_end, strict=True)]


def within(objective: Objective, ttft: Sequence[float], per_token: Sequence[float], end: Sequence[float]) -> int:
    """How many requests meet every limit of `objective`. Times in seconds, one of each kind per request."""
    limits = (objective.ttft_ms, objective.time_per_output_token_ms, objective.end_to_end_ms)
    return sum(
        all(limit is None or time * 1000 <= limit for limit, time in zip(limits, times, strict=True))
        for times in zip(ttft, per_token, end, strict=True)
    )


def run_of(raw: RawRun, level: str, load: Load) -> Run:
    """One run's raw times as figures. Raises EvaluateError, with `level`, when it can't be used."""
    _usable(raw, level, load.output_tokens)
    per_token = per_output_token(raw.ttft, raw.end_to_end, load.output_tokens)
    good = within(load.objective, raw.ttft, per_token, raw.end_to_end) if load.objective else None
    return Run(
        seconds=raw.seconds,
        completed=raw.completed,
        failed=raw.failed,
        input_tokens=raw.input_tokens,
        output_tokens=raw.output_tokens,
        requests_per_second=raw.completed / raw.seconds,
        output_tokens_per_second=raw.output_tokens / raw.seconds,
        total_tokens_per_second=(raw.input_tokens + raw.output_tokens) / raw.seconds,
        good=good,
        ttft_ms=percentiles(raw.ttft),
        inter_token_ms=percentiles(raw.inter_token),
        time_per_output_token_ms=percentiles(per_token),
        end_to_end_ms=percentiles(raw.end_to_end),
        drafts=Drafts(**asdict(raw.drafts)) if raw.drafts else None,
    )


def _usable(raw: RawRun, level: str, output_tokens: int) -> None:
    if not raw.completed or not raw.inter_token:
        words = "; ".join(raw.errors) or "no error was reported"
        raise EvaluateError(SERVER_ANSWER, f"at {level} no request was answered: {words}", hint="See the server's log.")
    if raw.output_tokens != raw.completed * output_tokens:
        raise EvaluateError(
            SERVER_ANSWER,
            f"at {level} the server gave {raw.output_tokens} tokens in {raw.completed} answers of {output_tokens}",
            hint="All answers must have one length: does the server honour ignore_eos, and does its context suffice?",
        )


def _prefix(runs: PrefixRuns, load: Load) -> PrefixEffect:
    for name, run in (("hit", runs.hit), ("miss", runs.miss)):
        _usable(run, f"a shared prefix of {load.prefix_tokens} tokens ({name})", load.output_tokens)
    # The first request of the run puts the prefix into the cache: it is a miss.
    hit, miss = runs.hit.ttft[1:], runs.miss.ttft[1:]
    return PrefixEffect(
        shared_tokens=load.prefix_tokens,
        requests=len(hit),
        hit_ttft_ms=statistics.median(hit) * 1000,
        miss_ttft_ms=statistics.median(miss) * 1000,
    )
