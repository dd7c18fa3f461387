"""Benchmark accuracy through the server: lm-eval does the prompts and the scoring, in its own environment.

Every model gets the same items: the worker draws `limit` of them with the seed and names each by task, index and
content. A request is one option of one item (`echo` with `logprobs`, the prompt as token ids), which vLLM answers
without its prefix cache; or one generated answer, greedy.

Measured with SmolLM2-135M on 2 cores: the time goes into the model and not into requests. 4 requests of 32 prompts in
flight took 1.05 ms a token, 64 of 1 prompt 1.07, so only fewer tokens or more cores for the engine make it faster (vLLM
leaves one of two cores to its API unless VLLM_CPU_NUM_OF_RESERVED_CPU=0: 1.81 ms). 600 items of PIQA, OpenBookQA and
CommonsenseQA, 2200 requests, took 69 s, 12 of them for starting lm-eval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.measure import suite
from evals.measure.suite import TaskRequest
from evals.server.client import Progress, nothing
from qpack.core.errors import EvaluateError
from qpack.core.records import Accuracy, Sample, TaskScore
from qpack.runtime import worker

Part = tuple[float, float]
"""From which share of a task's items to which, in their random order."""
WHOLE: Part = (0.0, 1.0)

WORKER = Path(__file__).parents[1] / "workers" / "lm_eval_worker.py"


def measure(
    environment: worker.Interpreter,
    *,
    base_url: str,
    model: str,
    tokenizer: Path,
    max_length: int,
    tasks: Sequence[TaskRequest],
    seed: int,
    out: Path,
    log: Path,
    part: Part = WHOLE,
    concurrency: int = 4,
    batch_size: int = 16,
    request_timeout: float = 600.0,
    timeout: float = 7200.0,
    progress: Progress = nothing,
) -> Accuracy:
    """Run `tasks` against the model served as `model` at `base_url`, with the tokenizer in the folder `tokenizer`.

    `max_length` is the server's, in tokens; a prompt that doesn't fit is an error. `concurrency` is HTTP requests in
    flight, each with `batch_size` prompts. `part` is which share of the items, in their random order. Times are
    seconds: of one request, and of all. Raises EvaluateError when an item is missing or can't be scored.
    """
    job = {
        "base_url": base_url,
        "model": model,
        "tokenizer": str(tokenizer.resolve()),
        "max_length": max_length,
        "concurrency": concurrency,
        "batch_size": batch_size,
        "seed": seed,
        "part": list(part),
        "timeout_seconds": request_timeout,
        "tasks_dir": str(suite.TASKS_DIR),
        "data_root": str(suite.data_root()) if any(not suite.is_hub(task.name) for task in tasks) else "",
        "tasks": [
            {
                "name": task.name,
                "load": task.name.removeprefix(suite.HUB_PREFIX),
                "limit": task.limit,
                "few_shot": task.few_shot,
                "chat": task.chat,
                "metric": task.metric or suite.default_metric(task.name),
            }
            for task in tasks
        ],
    }
    call = worker.Call(environment, out, log, timeout, EvaluateError, progress)
    raw = worker.run(WORKER, job, dict, call)
    return read(raw, tasks, part)


def read(raw: dict[str, Any], tasks: Sequence[TaskRequest], part: Part = WHOLE) -> Accuracy:
    """The worker's result, held against what was asked for. Raises EvaluateError when samples are missing or double."""
    result = Accuracy(lm_eval_version=raw["lm_eval_version"], tasks=tuple(_score(entry) for entry in raw["tasks"]))
    if [score.task for score in result.tasks] != [task.name for task in tasks]:
        raise EvaluateError(
            f"lm-eval gave results of {[score.task for score in result.tasks]}, not of {[task.name for task in tasks]}"
        )
    for score, task in zip(result.tasks, tasks, strict=True):
        known = suite.TASKS.get(task.name)
        planned = min(task.limit or known.items, known.items) if known else task.limit
        expected = planned and math.ceil(part[1] * planned) - math.ceil(part[0] * planned)
        if len({sample.id for sample in score.samples}) != len(score.samples):
            raise EvaluateError(f"{task.name}: an item was scored twice")
        if not score.samples or (known is not None and len(score.samples) != expected):
            raise EvaluateError(
                f"{task.name}: {len(score.samples)} items were scored, {expected} were asked for",
                hint="The data that is installed isn't what this version expects: run `qpack envs build demo`.",
            )
    return result


def _score(entry: dict[str, Any]) -> TaskScore:
    samples = tuple(Sample(id=sample["id"], score=sample["score"]) for sample in entry["samples"])
    if not all(math.isfinite(sample.score) for sample in samples):
        raise EvaluateError(f"{entry['task']}: a score isn't finite")
    return TaskScore(
        task=entry["task"],
        version=entry["version"],
        metric=entry["metric"],
        few_shot=entry["few_shot"],
        mean=entry["mean"],
        samples=samples,
        limit=entry["limit"],
        seed=entry["seed"],
        chat_template=entry["chat_template"],
    )
