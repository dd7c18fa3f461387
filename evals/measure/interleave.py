"""Interleaved load: two servers are up and loaded in turn (A B B A), so other load on the machine affects both.

Measured one after the other, two models also differ by what the machine did in between. The two runs of a round are
seconds apart, and the ratios of rounds are averaged (`evals.stats.estimates.ratio_of_rounds`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from evals.measure import latency
from evals.measure.eval_specs import InterleavedSpec
from evals.server.footprint import Footprint
from evals.server.session import Workspace
from evals.workers.vllm_bench_job import Requests, Server, TurnsAnswer, TurnsJob
from qpack.core.errors import EvaluateError
from qpack.core.records import Memory
from qpack.core.speed import Interleaved, Round, Turns
from qpack.runtime import other_work, worker

WORKER = Path(__file__).parents[1] / "workers" / "vllm_turns_worker.py"

# Left free beside a second server: on a machine for other processes, on an accelerator for activations, CUDA graphs and
# the context, which took 2.7 GiB for 8 billion parameters.
_SPARE = 2 * 2**30
_SPARE_DEVICE = 4 * 2**30


@dataclass(frozen=True)
class Target:
    """A server to load: its address, the model's name there, and a folder with the tokenizer."""

    base_url: str
    model: str
    tokenizer: Path


def too_large(held: Memory | Footprint, free_accelerator: Callable[[], int]) -> str | None:
    """Why a second server that needs as much memory as `held` can't be started now; None when it can.

    `free_accelerator` gives the free bytes of the accelerator; called if the server's memory was there.
    """
    resident = held.peak_resident_bytes if isinstance(held, Memory) else held.resident_bytes
    if held.weights_loaded_bytes is not None:
        needed = held.weights_loaded_bytes + held.kv_cache_bytes + _SPARE_DEVICE
        free, where = free_accelerator(), "accelerator's"
    else:
        needed, free, where = (resident or 0) + _SPARE, psutil.virtual_memory().available, "machine's"
    if free >= needed:
        return None
    gib = 2**30
    return f"a second server needs {needed / gib:.1f} GiB more of the {where} memory, and {free / gib:.1f} GiB are free"


def measure(
    workspace: Workspace, spec: InterleavedSpec, reference: Target, subject: Target, prompts: Path | None = None
) -> Interleaved:
    """Load both servers in the spec's rounds, each closed loop once per round with one request per client.

    `prompts` is a JSON Lines file of `prompt` or `input_ids` to send instead of random tokens. Raises EvaluateError as
    `latency.measure` does.
    """
    load = spec.load
    first, second = (Server(one.base_url, one.model, str(one.tokenizer.resolve())) for one in (reference, subject))
    job = TurnsJob(
        reference=first,
        subject=second,
        concurrency=load.concurrency,
        rounds=spec.rounds,
        requests=Requests(
            input_tokens=load.input_tokens,
            output_tokens=load.output_tokens,
            warmups=load.warmups,
            # Other prompts than in the separate load.
            seed=spec.seed + 500_000,
            prompts=str(prompts.resolve()) if prompts else None,
        ),
    )
    with other_work.watch() as others:
        answer = worker.run(WORKER, job, TurnsAnswer, workspace.call("vllm", "turns"))
    latency.report_disturbance(workspace, others.found)
    return Interleaved(
        tool=answer.tool,
        other_work=others.found,
        levels=tuple(
            Turns(
                concurrency=clients,
                input_tokens=load.input_tokens,
                output_tokens=load.output_tokens,
                rounds=tuple(
                    Round(
                        subject_first=turn.subject_first,
                        reference=latency.run_of(turn.reference, f"concurrency {clients}", load),
                        subject=latency.run_of(turn.subject, f"concurrency {clients}", load),
                    )
                    for turn in turns
                ),
            )
            for clients, turns in worker.paired(load.concurrency, answer.levels, EvaluateError)
        ),
    )
