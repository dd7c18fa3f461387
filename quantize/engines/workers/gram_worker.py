"""Quantizes a checkpoint with gram. Runs in its environment; see qpack_worker for the protocol.

Processes that share a job, each with a GPU of its own, import this module by its name.
"""

import importlib.util
import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import qpack_worker
from engine_answer import Answer
from gram_job import Job
from qpack_protocol import decode, encode

# cuBLAS gives the same bits on every run only with a fixed workspace, which it reads when it is loaded.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

GRAM = Path(__file__).resolve().parents[2] / "gram"
EVENTS = "QPACK_EVENTS_FD"


def load_gram():
    """Import the package `gram` from its path: modules beside it need qpack."""
    spec = importlib.util.spec_from_file_location("gram", GRAM / "__init__.py", submodule_search_locations=[str(GRAM)])
    package = importlib.util.module_from_spec(spec)
    sys.modules["gram"] = package
    spec.loader.exec_module(package)


def work(job, out, count=None):
    """Run the job in `count` processes, by default one per GPU; the answer is that of `gram.job.work`."""
    from gram import job as gram_job
    from gram import launch

    plain = {**encode(job), "out": out}
    count = launch.processes(Path(job.checkpoint)) if count is None else count
    try:
        return decode(Answer, share(count, plain) if count > 1 else gram_job.work(plain, qpack_worker.progress))
    except gram_job.Impossible as error:
        qpack_worker.fail(error, error.hint, kind="bad_input")
    except launch.RankDied as error:
        if error.signal != signal.SIGKILL:
            raise
        # What qpack makes of a worker that was killed, whoever did it, is made of this one too.
        print(error, file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def share(count, plain):
    """The result of a job that `count` processes share. Raises what `gram.launch.launch` does."""
    # By name: a new process can't import what is `__main__` here.
    import gram_worker
    from gram.launch import launch

    # Events go through a pipe of qpack's, whose end a new process gets only if it is handed over.
    events = Connection(os.dup(int(os.environ[EVENTS])), readable=False) if EVENTS in os.environ else None
    return launch(count, gram_worker.one_of_several, plain, events)


def one_of_several(rank, count, folder, plain, events):
    """What each of them does."""
    from gram.job import work
    from gram.launch import run_rank

    if events is not None:
        os.environ[EVENTS] = str(events.fileno())
    run_rank(rank, count, folder, lambda ranks: work(plain, qpack_worker.progress, ranks))


if "gram" not in sys.modules:
    load_gram()
if __name__ == "__main__":
    qpack_worker.main(work, Job)
