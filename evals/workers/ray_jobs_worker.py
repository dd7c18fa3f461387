"""Runs commands as jobs of a Ray cluster, as many at once as fit.

Runs inside the environment of ray.

Ray decides where and when each runs. Every node needs the programs and folders that the commands name at the same
paths. A failed job or a dead node is a result; other jobs go on.
"""

import ctypes
import dataclasses
import os
import signal
import subprocess

import qpack_worker
from ray_jobs_job import Answer, Ended, Job

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
qpack_worker.progress(0, 0, "loading Ray")

import ray  # noqa: E402  (slow to import: reported first)

PR_SET_PDEATHSIG = 1
LONGEST = 40
"""Ray's Unix sockets have paths about 60 characters longer than its folder's; the limit is 107."""


def end_with_parent():
    """Send SIGTERM to the job if its Ray worker is killed; qpack then ends its own processes."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def execute(line, folder, own):
    """Run one command where Ray schedules it; CUDA_VISIBLE_DEVICES has the GPUs that Ray assigned. Nodes can't import
    this folder's modules, so arguments and result (the fields of `Ended`) are plain data.
    """
    done = subprocess.run(
        line,
        cwd=folder,
        env=variables(own),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=end_with_parent,
    )
    node = ray.util.get_node_ip_address()
    return done.returncode, done.stdout, done.stderr[-20_000:], node


def variables(own):
    """A job's variables. Without OMP_NUM_THREADS, which Ray sets per task and a measured server would obey."""
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    return {**kept, **own}


TOKEN = (
    "Is it up? If it asks for a token, as Ray's clusters do by default, set RAY_AUTH_MODE=token here, and"
    " RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH unless the token is in ~/.ray/auth_token."
)


def join(address, options):
    """Connect. A cluster started here gets three tries: Ray gives each 30 s, and a busy machine may need more."""
    for left in (2, 1, 0):
        try:
            ray.init(address=address or "local", **options)
        except Exception as error:
            if address:
                qpack_worker.fail(f"no way into the Ray cluster at {address}: {error}", hint=TOKEN)
            if not left:
                raise
            ray.shutdown()
        else:
            return


def run(job, out):
    """Submit all commands, and report each that ended."""
    qpack_worker.progress(0, 0, "joining the Ray cluster" if job.address else "starting a Ray cluster here")
    here = {} if job.address else {"num_cpus": job.cpus, "include_dashboard": False}
    if here and len(out) < LONGEST:
        here["_temp_dir"] = out  # it ends with the sweep
    join(job.address, {"logging_level": "warning", "log_to_driver": False, **here})
    room = ray.cluster_resources()
    for name, kind in (("num_gpus", "GPU"), ("num_cpus", "CPU")):
        wanted = getattr(job.resources, name)
        if wanted > room.get(kind, 0):
            asked = f"a job needs {wanted:g} {kind}s, but the Ray cluster has {room.get(kind, 0):g}"
            qpack_worker.fail(asked, hint="Lower --job-cpus, or use a larger cluster.")
    # No retries: running the sweep again resumes jobs from the store.
    task = ray.remote(max_retries=0, **dataclasses.asdict(job.resources))(execute)
    commands = job.commands
    waiting = {task.remote(list(one.line), one.folder, one.variables): i for i, one in enumerate(commands)}
    found = [None] * len(commands)
    qpack_worker.progress(0, len(commands), "combinations")
    while waiting:
        (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
        number = waiting.pop(ready)
        try:
            found[number] = Ended(*ray.get(ready))
        except ray.exceptions.RayError as error:
            found[number] = Ended(None, "", f"{type(error).__name__}: {error}"[:2000])
        ended = "done" if found[number].code == 0 else "not built"
        qpack_worker.progress(len(commands) - len(waiting), len(commands), f"{commands[number].name}: {ended}")
    ray.shutdown()
    return Answer(tuple(found))


if __name__ == "__main__":
    qpack_worker.main(run, Job)
