"""Benchmark accuracy through the server: lm-eval makes the prompts and the scores, in its own environment.

Every model gets the same items: the worker draws `limit` of them with the seed and identifies each by task, index and
content. A request is one option of one item (`echo` with `logprobs`, the prompt as token ids), which vLLM answers
without its prefix cache; or one generated answer, greedy.

Measured with SmolLM2-135M on 2 cores: the model takes the time, not the requests. 4 requests of 32 prompts in flight
took 1.05 ms per token, 64 of 1 prompt 1.07, so only fewer tokens or more cores for the engine make it faster (vLLM
leaves one of two cores to its API unless VLLM_CPU_NUM_OF_RESERVED_CPU=0: 1.81 ms). 600 items of PIQA, OpenBookQA and
CommonsenseQA, 2200 requests, took 69 s, of which 12 s to start lm-eval.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from evals.measure import suite
from evals.measure.eval_specs import TasksSpec
from evals.measure.suite import TaskRequest
from evals.server.session import Session
from evals.tasks import sandbox
from evals.workers.lm_eval_job import Answer, Job, ScoredTask, WantedTask
from qpack.core.errors import EvaluateError
from qpack.core.problems import Code
from qpack.core.records import Accuracy, Generated, GenerationSettings, Sample, TaskScore
from qpack.runtime import worker

_TASK_RESULTS = Code("task-results", "The results are not of the tasks and items that were asked.")
_NO_SANDBOX = Code("no-sandbox", "This machine can't run code that models write apart from everything else.")

WORKER = Path(__file__).parents[1] / "workers" / "lm_eval_worker.py"
CONCURRENCY = 4
"""HTTP requests in flight."""
BATCH_SIZE = 16
"""Prompts in a request."""


def measure(session: Session, spec: TasksSpec) -> Accuracy:
    """Run the tasks through lm-eval, with the model's own tokenizer.

    A prompt that is longer than the server's limit is an error. Raises EvaluateError when an item is missing or can't
    be scored, and where a task executes answers and this machine has no sandbox for them.
    """
    if any(suite.TASKS[task.name].runs_code for task in spec.tasks if task.name in suite.TASKS):
        _require_sandbox()
    session.workspace.report(f"lm-eval on {', '.join(task.name for task in spec.tasks)}")
    return read(worker.run(WORKER, job(session, spec), Answer, session.workspace.call("lm-eval", "lm-eval")), spec)


def _require_sandbox() -> None:
    try:
        sandbox.require()
    except sandbox.NoSandboxError as error:
        hint = "Leave the code task out, or build on another machine."
        raise EvaluateError(_NO_SANDBOX, str(error), hint=hint) from error


def job(session: Session, spec: TasksSpec) -> Job:
    """What the worker is given. A generated answer of 32,000 tokens takes longer than one request of a measure may."""
    limits = session.workspace.limits
    return Job(
        base_url=session.endpoint.base_url,
        model=session.endpoint.model,
        tokenizer=str(session.tokenizer.resolve()),
        max_length=session.context(),
        concurrency=CONCURRENCY,
        batch_size=BATCH_SIZE,
        seed=spec.seed,
        part=spec.share,
        timeout_seconds=limits.tool if any(task.generation for task in spec.tasks) else limits.request,
        tasks_dir=str(suite.TASKS_DIR),
        data_root=str(suite.data_root()) if any(suite.has_data_file(task.name) for task in spec.tasks) else "",
        tasks=tuple(
            WantedTask(
                name=task.name,
                load=task.name.removeprefix(suite.HUB_PREFIX),
                limit=task.limit,
                few_shot=task.few_shot,
                chat=task.chat,
                metric=task.metric or suite.default_metric(task.name),
                generation=task.generation,
            )
            for task in spec.tasks
        ),
    )


def read(answer: Answer, spec: TasksSpec) -> Accuracy:
    """The worker's result, checked against the spec. Raises EvaluateError when samples are missing or duplicate."""
    tasks, share = spec.tasks, spec.share
    found, wanted = [entry.task for entry in answer.tasks], [task.name for task in tasks]
    if found != wanted:
        raise EvaluateError(
            _TASK_RESULTS, f"lm-eval returned results of {', '.join(found)}, not of {', '.join(wanted)}"
        )
    scores = tuple(_score(entry, task) for entry, task in zip(answer.tasks, tasks, strict=True))
    result = Accuracy(lm_eval_version=answer.lm_eval_version, tasks=scores)
    for score, task in zip(result.tasks, tasks, strict=True):
        known = suite.TASKS.get(task.name)
        planned = min(task.limit or known.items, known.items) if known else task.limit
        expected = planned and math.ceil(share[1] * planned) - math.ceil(share[0] * planned)
        if len({sample.id for sample in score.samples}) != len(score.samples):
            raise EvaluateError(_TASK_RESULTS, f"{task.name}: an item was scored twice")
        if not score.samples or (known is not None and len(score.samples) != expected):
            raise EvaluateError(
                _TASK_RESULTS,
                f"{task.name}: {len(score.samples)} items were scored instead of {expected}",
                hint="The installed data differs from what this version expects: see requirements/demo.txt.",
            )
    return result


def _score(entry: ScoredTask, asked: TaskRequest) -> TaskScore:
    settings = asked.generation
    return TaskScore(
        task=entry.task,
        version=entry.version,
        metric=entry.metric,
        few_shot=entry.few_shot,
        mean=entry.mean,
        samples=tuple(Sample(id=item.id, score=item.score) for item in entry.samples),
        limit=entry.limit,
        seed=entry.seed,
        chat_template=entry.chat_template,
        chance=entry.chance,
        tasks=entry.tasks,
        generation=GenerationSettings(**dataclasses.asdict(settings)) if settings else None,
        generated=tuple(
            Generated(tokens=item.generated.tokens, truncated=item.generated.truncated, looped=item.generated.looped)
            for item in entry.samples
            if item.generated
        ),
    )
