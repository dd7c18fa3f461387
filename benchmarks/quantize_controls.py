"""Quantizes a model with many calibration seeds in one process; runs in gram's environment.

    PYTHON quantize_controls.py JOB.json

JOB: `tokens_worker` and `gram` (the two workers of a build), and `controls`, a list of {"tokens", "gram"}: the jobs of
both, as a build writes them, each with its `out`. A control that is there is passed over; one that was stopped goes on.
Starting both workers anew for each seed takes longer than to quantize a small model.
"""

import json
import runpy
import shutil
import sys
from pathlib import Path


def main(path):
    """Make what isn't made yet."""
    job = json.loads(Path(path).read_text())
    rows = runpy.run_path(job["tokens_worker"], run_name="tokens")["work"]
    quantize = runpy.run_path(job["gram"], run_name="gram_worker")["work"]
    for control in job["controls"]:
        target = Path(control["gram"]["out"])
        if (target / "made").exists():
            continue
        for each in ("tokens", "gram"):
            Path(control[each]["out"]).mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target / "checkpoint", ignore_errors=True)
        rows(control["tokens"])
        quantize(control["gram"])
        shutil.rmtree(control["gram"]["scratch"], ignore_errors=True)
        (target / "made").touch()
        print(f"{target} is made", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
