"""Quantizes a checkpoint with gram. Runs in its environment; see qpack_worker for the protocol."""

import importlib.util
import os
import sys
from pathlib import Path

import qpack_worker
from engine_answer import Answer
from gram_job import Job
from qpack_protocol import decode, encode

# cuBLAS gives the same bits on every run only with a fixed workspace, which it reads when it is loaded.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

GRAM = Path(__file__).resolve().parents[2] / "gram"


def load_gram():
    """Import the package `gram` from its path: modules beside it need qpack."""
    spec = importlib.util.spec_from_file_location("gram", GRAM / "__init__.py", submodule_search_locations=[str(GRAM)])
    package = importlib.util.module_from_spec(spec)
    sys.modules["gram"] = package
    spec.loader.exec_module(package)


def work(job, out):
    """Run the job, as `gram.job.work` does."""
    from gram.job import Impossible, work

    try:
        return decode(Answer, work({**encode(job), "out": out}, qpack_worker.progress))
    except Impossible as error:
        qpack_worker.fail(error, error.hint, kind="bad_input")


load_gram()
if __name__ == "__main__":
    qpack_worker.main(work, Job)
