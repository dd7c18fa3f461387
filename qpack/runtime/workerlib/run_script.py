"""Runs a worker's script in an isolated interpreter (`python -I run_script.py SCRIPT JOB`).

An isolated interpreter looks for modules in its own folders alone: not in the current one, not in PYTHONPATH, not
beside the script. The two folders that a worker does need are named here: its own, and that of `qpack_worker`.

Standard library alone, and no syntax newer than Python 3.9.
"""

import os
import runpy
import sys


def main(script):
    """Run `script`, a file or a folder with `__main__.py`, as `__main__`, with its own arguments."""
    folder = script if os.path.isdir(script) else os.path.dirname(script)
    sys.argv[:] = sys.argv[1:]
    sys.path[:0] = [folder, os.path.dirname(os.path.abspath(__file__))]
    runpy.run_path(os.path.join(script, "__main__.py") if os.path.isdir(script) else script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
