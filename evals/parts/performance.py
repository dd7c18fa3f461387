"""First questions, latency and memory: on the fresh server, and alone, so that nothing else colours them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from evals.measure import latency
from evals.measure.asks import Load, Speed
from evals.parts.session import Session
from evals.server import first_questions, memory
from qpack.core.records import Performance
from qpack.runtime.variables import server_variables


def measure(session: Session, ask: Speed, out: Path) -> Performance:
    """Ask, load and weigh the server; its log is kept in `out`. Raises EvaluateError."""
    server, subject, setting = session.server, session.subject, session.setting
    setting.tell(f"vLLM {server.version} is up after {server.start_seconds:.0f} s; first questions")
    chat = first_questions.has_chat_template(subject.checkpoint)
    answers = first_questions.measure(base_url=server.base_url, model=server.model, chat=chat)
    idle = memory.resident_bytes(server.pid)
    setting.tell(f"latency and throughput at {_levels(ask.load)}")
    with memory.watch(server.pid, interval=5.0) as peak:
        speed = latency.measure(
            setting.tools["vllm"],
            ask.load,
            base_url=server.base_url,
            model=server.model,
            tokenizer=subject.checkpoint,
            seed=ask.seed,
            out=out / "bench",
            log=session.log("bench"),
            timeout=setting.timeout,
            progress=setting.progress,
        )
    log, metrics = server.log.read_text(errors="replace"), memory.scrape(server.base_url)
    held = memory.measure(
        model=subject.checkpoint,
        log=log,
        metrics=metrics,
        resident=idle,
        peak_resident=peak.bytes,
        start_seconds=server.start_seconds,
    )
    shutil.copyfile(server.log, out / "vllm.log")
    ran, version = memory.ran_with(log, metrics), f"vllm {server.version}"
    got = server_variables(os.environ)
    return Performance(server=version, canary=answers, latency=speed, memory=held, ran_with=ran, variables=got)


def _levels(load: Load) -> str:
    closed = f"concurrency {', '.join(map(str, load.concurrency))}" if load.concurrency else ""
    opened = f"{', '.join(f'{rate:g}' for rate in load.rates)} requests/s" if load.rates else ""
    return " and ".join(part for part in (closed, opened) if part)
