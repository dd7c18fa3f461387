"""First questions, latency and memory, on the fresh server before all other parts."""

from __future__ import annotations

import os
import shutil

from evals.measure import latency
from evals.measure.eval_specs import Load, PerformanceSpec
from evals.server import first_questions, memory
from evals.server.session import ServedSession
from qpack.core.records import Performance
from qpack.runtime.variables import server_variables


def measure(session: ServedSession, spec: PerformanceSpec) -> Performance:
    """Measure the server; its log is kept with the result. Raises EvaluateError."""
    server, workspace = session.server, session.workspace
    workspace.report(f"vLLM {server.version} is up after {server.start_seconds:.0f} s; first questions")
    answers = first_questions.measure(session.endpoint)
    idle = memory.resident_bytes(server.pid)
    workspace.report(f"latency and throughput at {_levels(spec.load)}")
    with memory.watch(server.pid, interval=5.0) as peak:
        speed = latency.measure(session, spec)
    log, metrics = server.log.read_text(errors="replace"), memory.scrape(server.base_url)
    held = memory.measure(
        model=session.served.checkpoint,
        log=log,
        metrics=metrics,
        resident=idle,
        peak_resident=peak.bytes,
        start_seconds=server.start_seconds,
    )
    shutil.copyfile(server.log, workspace.out / "vllm.log")
    ran, version = memory.effective_defaults(log, metrics), f"vllm {server.version}"
    got = server_variables(os.environ)
    return Performance(server=version, canary=answers, latency=speed, memory=held, ran_with=ran, variables=got)


def _levels(load: Load) -> str:
    closed = f"concurrency {', '.join(map(str, load.concurrency))}" if load.concurrency else ""
    opened = f"{', '.join(f'{rate:g}' for rate in load.rates)} requests/s" if load.rates else ""
    return " and ".join(part for part in (closed, opened) if part)
