"""Runs a worker that may take little more memory than it has by a certain step: it really runs out of it.

`python limited.py WHEN MIB SCRIPT JOB`: SCRIPT runs as if it had been started itself. When it first tells of WHEN, its
address space is limited to what it is by then and MIB more.
"""

import resource
import runpy
import sys
import time
from pathlib import Path

import qpack_worker


def main(when, mib, script, job):
    """Never returns: the script ends the process."""
    told, limited = qpack_worker.progress, []

    def progress(done, total, what):
        told(done, total, what)
        if what.startswith(when) and not limited:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            size = pages * resource.getpagesize() + int(mib) * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
            limited.append(size)
            time.sleep(2)  # who watches the worker looks at its limit now and then

    qpack_worker.progress = progress
    sys.path[0] = str(Path(script).parent)
    sys.argv = [script, job]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
