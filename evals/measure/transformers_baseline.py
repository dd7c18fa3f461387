"""How fast the same model answers in plain transformers, as most people first run it: the baseline of a server."""

from __future__ import annotations

from pathlib import Path

from evals.measure.latency import Load
from evals.server.client import Progress, nothing
from qpack.core.errors import EvaluateError
from qpack.core.frozen import Frozen
from qpack.runtime import worker

WORKER = Path(__file__).parents[1] / "workers" / "transformers_speed_worker.py"


class PlainBatch(Frozen):
    """`generate` on `batch` sequences at once: output tokens a second over all of them, of each repeat."""

    batch: int
    output_tokens_per_second: tuple[float, ...]


class Plain(Frozen):
    """Greedy generation in one process, batch by batch, without a server."""

    tool: str
    batches: tuple[PlainBatch, ...]


def measure(
    environment: worker.Interpreter,
    load: Load,
    *,
    checkpoint: Path,
    random_weights: bool,
    dtype: str,
    seed: int,
    out: Path,
    log: Path,
    timeout: float = 7200.0,
    progress: Progress = nothing,
) -> Plain:
    """Generate as many tokens for prompts as long as `load` asks for, in batches as large as its concurrencies.

    Raises EvaluateError when the model can't be loaded or a batch doesn't fit into memory.
    """
    job = {
        "checkpoint": str(checkpoint.resolve()),
        "random_weights": random_weights,
        "dtype": dtype,
        "batches": list(load.concurrency),
        "input_tokens": load.input_tokens,
        "output_tokens": load.output_tokens,
        "repeats": load.repeats,
        "seed": seed,
    }
    call = worker.Call(environment, out, log, timeout, EvaluateError, progress)
    raw = worker.run(WORKER, job, dict, call)
    return Plain(
        tool=raw["tool"],
        batches=tuple(
            PlainBatch(
                batch=one["batch"],
                output_tokens_per_second=tuple(one["batch"] * load.output_tokens / took for took in one["seconds"]),
            )
            for one in raw["batches"]
        ),
    )
