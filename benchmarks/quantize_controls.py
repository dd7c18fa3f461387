"""Quantizes a model with many calibration seeds in one process; runs in gram's environment.

    PYTHON quantize_controls.py JOB.json

JOB: `tokens_worker` and `gram` (the two workers of a build), and `controls`, a list of {"out", "tokens", "gram"}: a
folder, and the jobs of both. A control that is there is passed over; one that was stopped goes on.
Starting both workers anew for each seed takes longer than to quantize a small model.
"""

import json
import runpy
import shutil
import sys
from pathlib import Path

from qpack_protocol import decode


def main(path):
    """Make what isn't made yet."""
    job = json.loads(Path(path).read_text())
    sys.path[:0] = [str(Path(job[name]).parent) for name in ("tokens_worker", "gram")]
    tokenizer = runpy.run_path(job["tokens_worker"], run_name="tokens")
    quantizer = runpy.run_path(job["gram"], run_name="gram_worker")
    for control in job["controls"]:
        target = Path(control["out"])
        if (target / "made").exists():
            continue
        target.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target / "checkpoint", ignore_errors=True)
        tokenizer["work"](decode(tokenizer["RowsJob"], control["tokens"]), control["out"])
        quantizer["work"](decode(quantizer["Job"], control["gram"]), control["out"])
        shutil.rmtree(control["gram"]["scratch"], ignore_errors=True)
        (target / "made").touch()
        print(f"{target} is made", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
