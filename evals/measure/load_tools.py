"""The same load by other load generators: GuideLLM and inference-perf, in environments of their own.

Their figures are kept as they give them, under their names, beside those of `vllm bench serve`; no gate or objective
uses them. Each runs every level once: prompts of random tokens, answers of one length (`ignore_eos`).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from evals.measure.eval_specs import PerformanceSpec
from evals.server.codes import SERVER_ANSWER
from evals.server.eval_environments import GUIDELLM, INFERENCE_PERF
from evals.server.session import Session
from evals.workers.load_tool_job import Answer, Job, RawToolRun, Times, Tool, ToolLevel, ToolServer
from qpack.core.errors import EvaluateError
from qpack.core.speed import Percentiles, ToolLoad, ToolRun
from qpack.runtime import worker

WORKER = Path(__file__).parents[1] / "workers" / "load_tool_worker.py"
SPECS = {GUIDELLM.name: GUIDELLM, INFERENCE_PERF.name: INFERENCE_PERF}
"""The environment of each tool."""


def part_of(tool: str) -> str:
    """The name of its part of the evidence."""
    return tool.replace("-", "_")


def measure(session: Session, tool: Tool, spec: PerformanceSpec) -> ToolLoad:
    """Put the spec's levels on the server with `tool`. Raises EvaluateError when one has no answered request."""
    load = spec.load
    levels = tuple(ToolLevel(one.num_prompts, one.concurrency, one.rate) for one in load.levels())
    server = ToolServer(session.endpoint.base_url, session.endpoint.model, str(session.tokenizer.resolve()))
    session.workspace.report(f"the same load by {tool}")
    job = Job(tool, server, levels, load.input_tokens, load.output_tokens, spec.seed, load.rate_seconds)
    answer = worker.run(WORKER, job, Answer, session.workspace.call(tool, tool))
    pairs = worker.paired(list(levels), answer.levels, EvaluateError)
    runs = tuple(_run(answer.tool, level, raw) for level, raw in pairs)
    return ToolLoad(tool=answer.tool, input_tokens=load.input_tokens, output_tokens=load.output_tokens, runs=runs)


def _run(tool: str, level: ToolLevel, raw: RawToolRun) -> ToolRun:
    if raw.ttft_ms is None or raw.per_token_ms is None or raw.end_to_end_ms is None:
        at = f"{level.rate:g} requests/s" if level.rate is not None else f"concurrency {level.concurrency}"
        what = f"{tool} got no answer at {at}: {raw.failed} requests failed"
        raise EvaluateError(SERVER_ANSWER, what, hint="See the server's log, and the tool's beside it.")
    return ToolRun(
        concurrency=level.concurrency,
        rate=level.rate,
        seconds=raw.seconds,
        completed=raw.completed,
        failed=raw.failed,
        requests_per_second=raw.requests_per_second,
        output_tokens_per_second=raw.output_tokens_per_second,
        ttft_ms=_percentiles(raw.ttft_ms),
        per_token_ms=_percentiles(raw.per_token_ms),
        end_to_end_ms=_percentiles(raw.end_to_end_ms),
    )


def _percentiles(times: Times) -> Percentiles:
    return Percentiles(**asdict(times))
