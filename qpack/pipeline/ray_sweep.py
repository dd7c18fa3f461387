"""A sweep on a Ray cluster: one job a combination, Ray's own scheduling, and the store for what comes of it.

A job is `qpack sweep` of one combination, so a node does what this machine would, and keeps every stage in the same
store. Results are read from the store afterwards; only errors come back through Ray.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.server import eval_environments
from evals.workers.ray_jobs_job import Answer, Command, Ended, Job, Resources
from qpack.core import problems
from qpack.core.errors import EnvironmentFailed, EvaluateError, QpackError
from qpack.core.problems import Code
from qpack.core.records import Release
from qpack.pipeline import plan, release_records
from qpack.pipeline.context import Context
from qpack.pipeline.run import from_store
from qpack.pipeline.stages.judge import JUDGED
from qpack.pipeline.state import Build
from qpack.pipeline.sweep import Grid, Point, grid
from qpack.recipe.models import Serve
from qpack.recipe.recipe_file import load
from qpack.runtime import environments as envs
from qpack.runtime import hardware, worker
from qpack.runtime.variables import ALWAYS, CLUSTER, inherited

_NOT_IN_STORE = Code("not-in-store", "Another machine's result isn't in this store.")

WORKER = Path(__file__).parents[2] / "evals" / "workers" / "ray_jobs_worker.py"


@dataclass(frozen=True)
class Cluster:
    """Where to run. `address` is that of a cluster, None for one on this machine for as long as the sweep takes;
    `job_cpus` are the cores that one job takes (None: on a CPU all of a machine's, beside a GPU one).
    """

    address: str | None = None
    job_cpus: int | None = None


def sweep(
    asked: Grid, context: Context, cluster: Cluster, report: Callable[[int, int, Point], None]
) -> tuple[Point, ...]:
    """Build every combination up to its verdict, as many at once as the cluster has room for.

    A combination that can't be built is a point with its error; `report` gets each afterwards. Raises RecipeError if
    the recipe itself can't be read, and EnvironmentFailed if there is no such cluster or it is too small.
    """
    loaded, store = load(asked.recipe, list(asked.settings)), context.store
    combinations = grid(asked.vary)
    machine = hardware.detect()
    target = machine.target if loaded.recipe.serve.target == "auto" else loaded.recipe.serve.target
    ray = context.environment(envs.resolve(eval_environments.RAY, "cpu", store.home))
    with tempfile.TemporaryDirectory(prefix="ray-") as scratch:
        needed = resources(target, gpus(loaded.recipe.serve), cluster.job_cpus, machine.cores)
        commands = tuple(_command(asked, combination, context) for combination in combinations)
        job = Job(cluster.address, machine.cores, needed, commands)
        seconds = loaded.recipe.limits.stage_minutes * 60 * len(combinations)
        log = store.home / "logs" / "ray.log"
        call = worker.Call(ray, Path(scratch), log, seconds, EnvironmentFailed, context.console.progress)
        answer = worker.run(WORKER, job, Answer, call)
    points = []
    for number, (combination, done) in enumerate(worker.paired(combinations, answer.jobs, EnvironmentFailed), 1):
        points.append(_point(asked, combination, done, context))
        report(number, len(combinations), points[-1])
    return tuple(points)


def gpus(serve: Serve) -> int:
    """GPUs of one server: the sections of a recipe are read before a manifest is made of them."""
    more = [serve.arguments.get(flag, 1) for flag in ("pipeline-parallel-size", "data-parallel-size")]
    return math.prod([serve.tensor_parallel, *(count for count in more if isinstance(count, int))])


def resources(target: str, gpu_count: int, job_cpus: int | None, cores: int) -> Resources:
    """Resources of a Ray job: its GPUs, or on a CPU all cores, since a server there uses all of them."""
    if target == "cpu":
        return Resources(num_cpus=job_cpus or cores, num_gpus=0)
    return Resources(num_cpus=job_cpus or 1, num_gpus=gpu_count)


def _command(asked: Grid, combination: Sequence[str], context: Context) -> Command:
    given = [word for setting in asked.settings for word in ("--set", setting)]
    varied = [word for setting in combination for word in ("--vary", setting)]
    # -P: the job's working folder has the recipe, and no modules.
    line = [sys.executable, "-P", "-m", "qpack.cli.start", "sweep", str(asked.recipe.absolute()), *given, *varied]
    return Command(
        name=" ".join(combination),
        line=(*line, "--json"),
        folder=str(Path.cwd()),
        variables={
            **inherited(os.environ, CLUSTER),
            **ALWAYS,
            "QPACK_HOME": str(context.store.home.absolute()),
            "QPACK_REGISTRY": str(context.registry.absolute()),
        },
    )


def _point(asked: Grid, combination: tuple[str, ...], done: Ended, context: Context) -> Point:
    if done.code != 0:
        return Point(combination, error=why_not(done))
    try:
        return Point(combination, release=_stored(asked.recipe, [*asked.settings, *combination], context))
    except QpackError as error:
        return Point(combination, error=error)


def _stored(recipe: Path, settings: list[str], context: Context) -> Release:
    """What a job left in the store. Raises EnvironmentFailed if it isn't there: the node has another store."""
    planned = plan.make(load(recipe, settings), context.store, thorough=True)
    build = from_store(Build(planned, context, allow_failed_gates=True))
    if build.get(JUDGED) is None:
        raise EnvironmentFailed(
            _NOT_IN_STORE,
            "the job built this combination, but it isn't in this machine's store",
            hint=f"Every node needs the same {context.store.home}, on a shared file system, and the same hardware.",
        )
    return release_records.release(build)


def why_not(done: Ended) -> QpackError:
    """The error of a job that didn't build its combination, from what it printed."""
    try:
        failed = json.loads(done.out)["not_built"][0]
        what, found = str(failed["error"]), tuple(map(problems.from_json, failed["problems"]))
        code = problems.declared_elsewhere(str(failed["code"]))
    except (ValueError, LookupError, TypeError):
        last = "\n".join(done.err.strip().splitlines()[-6:]) or "no output"
        return EvaluateError(
            worker.NO_RESULT,
            f"the job ended without a result (exit code {done.code}): {last}",
            hint="Ray may have lost its node.",
        )
    kinds = {kind.exit_code: kind for kind in QpackError.__subclasses__()}
    kind = kinds.get(done.code or 0, EvaluateError)
    return kind(code, what, problems=found)
