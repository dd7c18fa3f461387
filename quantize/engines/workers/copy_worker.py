"""Copies a checkpoint. Runs in the transformers environment, and needs only the standard library.

Copies instead of links: the source's files may change, a release's must not.
"""

import os
import resource
import shutil
import time

import qpack_worker
from copy_job import Job
from engine_answer import Answer


def work(job, out):
    """Copy every file of the folder."""
    started = time.monotonic()
    target = os.path.join(out, "checkpoint")
    os.mkdir(target)
    names = sorted(os.listdir(job.checkpoint))
    for number, name in enumerate(names):
        qpack_worker.progress(number, len(names), name)
        shutil.copyfile(os.path.join(job.checkpoint, name), os.path.join(target, name))
    return Answer(
        engine_version="1",
        quantized_layers=0,
        linear_layers=job.linear_layers,
        seconds=time.monotonic() - started,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


if __name__ == "__main__":
    qpack_worker.main(work, Job)
