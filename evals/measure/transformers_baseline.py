"""How fast the same model generates in transformers without a server: the baseline of a served model's speed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evals.measure.eval_specs import PerformanceSpec
from evals.server.session import Workspace
from evals.workers.transformers_speed_job import Answer, Job
from qpack.core.frozen import Frozen
from qpack.runtime import worker

WORKER = Path(__file__).parents[1] / "workers" / "transformers_speed_worker.py"


class TransformersBatch(Frozen):
    """`generate` on `batch` sequences at once: output tokens per second over all of them, per repeat."""

    batch: int
    output_tokens_per_second: tuple[float, ...]


class TransformersSpeed(Frozen):
    """Greedy generation in one process, batch by batch, without a server."""

    tool: str
    batches: tuple[TransformersBatch, ...]


@dataclass(frozen=True)
class Weights:
    """A checkpoint as transformers loads it: its folder, the data type, and whether its weights are random."""

    checkpoint: Path
    dtype: str
    random: bool


def measure(workspace: Workspace, weights: Weights, spec: PerformanceSpec) -> TransformersSpeed:
    """Generate with prompt and output lengths of the load, in batches as large as its concurrencies.

    Raises EvaluateError when the model can't be loaded or a batch doesn't fit into memory.
    """
    load = spec.load
    job = Job(
        checkpoint=str(weights.checkpoint.resolve()),
        random_weights=weights.random,
        dtype=weights.dtype,
        batches=load.concurrency,
        input_tokens=load.input_tokens,
        output_tokens=load.output_tokens,
        repeats=load.repeats,
        seed=spec.seed,
    )
    answer = worker.run(WORKER, job, Answer, workspace.call("vllm", "transformers"))
    return TransformersSpeed(
        tool=answer.tool,
        batches=tuple(
            TransformersBatch(
                batch=one.batch,
                output_tokens_per_second=tuple(one.batch * load.output_tokens / took for took in one.seconds),
            )
            for one in answer.batches
        ),
    )
