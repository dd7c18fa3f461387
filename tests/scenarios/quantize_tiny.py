"""Quantizes a model once for each job, with the real llm-compressor worker. Runs in its environment.

`python quantize_tiny.py WORKERS JOB...`: WORKERS is the folder of the workers; each JOB is a job file of
`llmcompressor_worker.py` with `out` in it. One process for all of them: its imports take longer than the work.
"""

import json
import sys
from pathlib import Path


def main(workers, *jobs):
    """Run every job; what the worker returns is thrown away, what it writes stays."""
    sys.path.insert(0, workers)
    import llmcompressor_worker

    for job in jobs:
        read = json.loads(Path(job).read_text())
        Path(read["out"]).mkdir(parents=True)
        llmcompressor_worker.work(read)


if __name__ == "__main__":
    main(*sys.argv[1:])
