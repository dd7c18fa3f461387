"""A sweep on a Ray cluster: one job a combination, Ray's own scheduling, and the store for what comes of it.

A job is `qpack sweep` of one combination, so a node does what this machine would, and keeps every stage in the same
store. What was built is read from the store afterwards; only why a combination was not comes back through Ray.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.server import eval_environments
from evals.workers.ray_jobs_job import Answer, Command, Ended, Job, Resources
from qpack.core.console import Console
from qpack.core.errors import EnvironmentFailed, EvaluateError, Problem, QpackError
from qpack.core.records import Release
from qpack.core.store import Store
from qpack.pipeline import plan as plans
from qpack.pipeline import release_records
from qpack.pipeline.state import Build, from_store
from qpack.pipeline.sweep import Point, grid
from qpack.recipe.recipe_file import load
from qpack.runtime import environments as envs
from qpack.runtime import hardware, worker
from qpack.runtime.variables import ALWAYS, CLUSTER, inherited

WORKER = Path(__file__).parents[2] / "evals" / "workers" / "ray_jobs_worker.py"


@dataclass(frozen=True)
class Cluster:
    """Where to run. `address` is that of a cluster, None for one on this machine for as long as the sweep takes;
    `job_cpus` are the cores that one job takes (None: on a CPU all of a machine's, beside a GPU one).
    """

    address: str | None = None
    job_cpus: int | None = None


def sweep(
    recipe: Path,
    vary: Sequence[str],
    settings: Sequence[str],
    store: Store,
    registry: Path,
    console: Console,
    cluster: Cluster,
    *,
    ended: Callable[[int, int, Point], None],
) -> tuple[Point, ...]:
    """Build every combination up to its verdict, as many at once as the cluster has room for.

    A combination that can't be built is a point with its error. Raises RecipeError when the recipe itself, as it
    stands, can't be read, and EnvironmentFailed when there is no such cluster or it is too small.
    """
    loaded = load(recipe, list(settings))
    combinations = grid(vary)
    machine = hardware.detect()
    target = machine.target if loaded.recipe.serve.target == "auto" else loaded.recipe.serve.target
    ray = envs.ensure(envs.resolve(eval_environments.RAY, "cpu", store.home), store.home, console.tell)
    asked = resources(target, loaded.recipe.serve.tensor_parallel, cluster.job_cpus, machine.cores)
    with tempfile.TemporaryDirectory(prefix="ray-") as scratch:
        commands = tuple(_command(recipe, settings, combination, store, registry) for combination in combinations)
        job = Job(cluster.address, machine.cores, asked, commands)
        seconds = loaded.recipe.limits.stage_minutes * 60 * len(combinations)
        log = store.home / "logs" / "ray.log"
        call = worker.Call(ray, Path(scratch), log, seconds, EnvironmentFailed, console.progress)
        answer = worker.run(WORKER, job, Answer, call)
    points = []
    for number, (combination, done) in enumerate(worker.paired(combinations, answer.jobs, EnvironmentFailed), 1):
        points.append(_point(recipe, settings, combination, done, store, registry, console))
        ended(number, len(combinations), points[-1])
    return tuple(points)


def resources(target: str, tensor_parallel: int, job_cpus: int | None, cores: int) -> Resources:
    """What a job asks Ray for: its GPUs, or on a CPU all cores, because a server there takes all that it finds."""
    if target == "cpu":
        return Resources(num_cpus=job_cpus or cores, num_gpus=0)
    return Resources(num_cpus=job_cpus or 1, num_gpus=tensor_parallel)


def _command(
    recipe: Path, settings: Sequence[str], combination: Sequence[str], store: Store, registry: Path
) -> Command:
    given = [word for setting in settings for word in ("--set", setting)]
    varied = [word for setting in combination for word in ("--vary", setting)]
    # -P: the folder that the job works in is where the recipe is, not where modules are.
    line = [sys.executable, "-P", "-m", "qpack.cli.app", "sweep", str(recipe.absolute()), *given, *varied, "--json"]
    return Command(
        name=" ".join(combination),
        line=tuple(line),
        folder=str(Path.cwd()),
        variables={
            **inherited(os.environ, CLUSTER),
            **ALWAYS,
            "QPACK_HOME": str(store.home.absolute()),
            "QPACK_REGISTRY": str(registry.absolute()),
        },
    )


def _point(
    recipe: Path,
    settings: Sequence[str],
    combination: tuple[str, ...],
    done: Ended,
    store: Store,
    registry: Path,
    console: Console,
) -> Point:
    if done.code == 0:
        try:
            return Point(combination, release=_stored(recipe, [*settings, *combination], store, registry, console))
        except QpackError as error:
            return Point(combination, error=error)
    return Point(combination, error=why_not(done))


def _stored(recipe: Path, settings: list[str], store: Store, registry: Path, console: Console) -> Release:
    """What a job left in the store. Raises EnvironmentFailed when it isn't there: the node has another store."""
    plan = plans.make(load(recipe, settings), store, thorough=True)
    build = from_store(Build(plan, store, console, registry, allow_failed_gates=True))
    if build.judged is None:
        raise EnvironmentFailed(
            "the job built this combination, and this machine's store doesn't have it",
            hint=f"Every node needs the same {store.home}, on a shared file system, and hardware of one kind.",
        )
    return release_records.release(build)


def why_not(done: Ended) -> QpackError:
    """The error of a job that didn't build its combination, from what it printed."""
    try:
        told = json.loads(done.out)["not_built"][0]
        what, problems = str(told["error"]), tuple(Problem(str(one)) for one in told["problems"])
    except (ValueError, LookupError, TypeError):
        last = "\n".join(done.err.strip().splitlines()[-6:]) or "it said nothing"
        return EvaluateError(
            f"the job ended without a result (exit code {done.code}): {last}", hint="Ray may have lost its node."
        )
    kinds = {kind.exit_code: kind for kind in QpackError.__subclasses__()}
    kind = kinds.get(done.code or 0, EvaluateError)
    return kind(what, problems=problems)
