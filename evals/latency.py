"""Latency and throughput under load: `vllm bench serve` against the running server.

A closed loop: `concurrency` requests are in flight, the next one is sent when one is answered. Prompts are random
tokens of one length, and every answer has the same length (`ignore_eos`), so that two models do the same work. Times
are as vLLM defines them: TTFT from sending to the first token's chunk, inter-token from chunk to chunk, end to end
from sending to the last chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.client import Progress, nothing
from qpack import worker
from qpack.errors import EvaluateError
from qpack.results import Latency, Level, Percentiles, Run

WORKER = Path(__file__).parent / "workers" / "vllm_bench_worker.py"


def measure(
    environment: worker.Interpreter,
    *,
    base_url: str,
    model: str,
    tokenizer: Path,
    concurrencies: Sequence[int],
    num_prompts: Sequence[int],
    input_tokens: int,
    output_tokens: int,
    seed: int,
    out: Path,
    log: Path,
    repeats: int = 2,
    warmups: int = 4,
    timeout: float = 7200.0,
    progress: Progress = nothing,
) -> Latency:
    """Load the model served as `model` at each of `concurrencies`, `repeats` times with `num_prompts` requests of
    that level.

    `warmups` requests go before each level and aren't counted. `output_tokens` is 2 or more (else there is no time
    between tokens). Raises EvaluateError when a level has no answered request or answers of another length.
    """
    if len(num_prompts) != len(concurrencies) or repeats < 1 or output_tokens < 2:
        raise ValueError("one num_prompts for each concurrency, repeats >= 1, output_tokens >= 2")
    job = {
        "base_url": base_url,
        "model": model,
        "tokenizer": str(tokenizer.resolve()),
        "levels": list(concurrencies),
        "num_prompts": list(num_prompts),
        "repeats": repeats,
        "warmups": warmups,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "seed": seed,
    }
    raw = worker.run(
        environment, WORKER, job, out=out, log=log, progress=progress, timeout=timeout, error=EvaluateError
    )
    return read(raw, input_tokens=input_tokens, output_tokens=output_tokens)


def read(raw: dict[str, Any], *, input_tokens: int, output_tokens: int) -> Latency:
    """The worker's raw times (seconds) as percentiles (milliseconds), level by level."""
    return Latency(
        tool=raw["tool"],
        levels=tuple(
            Level(
                concurrency=level["concurrency"],
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                runs=tuple(_run(run, level["concurrency"], output_tokens) for run in level["runs"]),
            )
            for level in raw["levels"]
        ),
    )


def percentiles(seconds: Sequence[float]) -> Percentiles:
    """Mean and percentiles (linear interpolation, as vLLM reports them) in milliseconds of times in seconds; not for
    no times.
    """
    ms = np.asarray(seconds, dtype=np.float64) * 1000.0
    p50, p95, p99 = np.percentile(ms, [50, 95, 99])
    return Percentiles(mean=float(ms.mean()), p50=float(p50), p95=float(p95), p99=float(p99))


def _run(raw: dict[str, Any], concurrency: int, output_tokens: int) -> Run:
    if not raw["completed"] or not raw["inter_token"]:
        words = "; ".join(raw["errors"]) or "no error was reported"
        raise EvaluateError(
            f"at concurrency {concurrency} no request was answered: {words}", hint="The server's log says more."
        )
    if raw["output_tokens"] != raw["completed"] * output_tokens:
        raise EvaluateError(
            f"at concurrency {concurrency} the server gave {raw['output_tokens']} tokens in {raw['completed']} answers"
            f" of {output_tokens}",
            hint="Answers of other lengths can't be compared; is ignore_eos honoured, and does the context fit?",
        )
    return Run(
        seconds=raw["seconds"],
        completed=raw["completed"],
        failed=raw["failed"],
        input_tokens=raw["input_tokens"],
        output_tokens=raw["output_tokens"],
        output_tokens_per_second=raw["output_tokens"] / raw["seconds"],
        ttft_ms=percentiles(raw["ttft"]),
        inter_token_ms=percentiles(raw["inter_token"]),
        end_to_end_ms=percentiles(raw["end_to_end"]),
    )
