"""Quantizes a model once for each job, with the real llm-compressor worker. Runs in its environment.

`python quantize_tiny.py WORKERS JOB...`: WORKERS is the folder of the workers; each JOB is a job file of
`llmcompressor_worker.py`. One process for all of them: its imports take longer than the work.
"""

import sys
from pathlib import Path


def main(workers, *jobs):
    """Run every job; what the worker returns is thrown away, what it writes stays."""
    sys.path.insert(0, workers)
    import llmcompressor_worker
    from qpack_protocol import Order, decode, read

    for path in jobs:
        order = read(path, Order)
        Path(order.out).mkdir(parents=True)
        llmcompressor_worker.work(decode(llmcompressor_worker.Job, order.job), order.out)


if __name__ == "__main__":
    main(*sys.argv[1:])
