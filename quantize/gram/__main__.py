"""`python -m gram JOB.json`, from the folder above this package: quantize one checkpoint.

`job.work` says what JOB holds. Progress goes to stderr, the result to stdout as JSON. `torchrun --nproc-per-node 2 -m
gram JOB.json`, or any launcher that sets torchrun's variables, on one machine or on several that share the job's
folders, shares the work out: the result is the same.
"""

import json
import os
import sys
from pathlib import Path


def main() -> int:
    """Run the job file in the first argument. Exit code 0: done, 1: impossible, 2: no job."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    # cuBLAS gives the same bits on every run only with a fixed workspace, set before it is loaded.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from .job import Impossible, work
    from .ranks import leave, started_by_torchrun

    ranks = started_by_torchrun()
    try:
        result = work(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), _progress, ranks)
    except Impossible as error:
        print(f"{error}\n{error.hint}", file=sys.stderr)
        return 1
    if ranks is None or ranks.first:
        print(json.dumps(result))
    if ranks is not None:
        leave()
    return 0


def _progress(done: int, total: int, what: str) -> None:
    print(f"{what} {done}/{total}" if total else what, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
