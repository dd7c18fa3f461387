"""The worker: one job in, a checkpoint that vLLM serves out. Run as a folder by an engine's own interpreter.

Job: checkpoint, tokens (JSON lines of {"input_ids": [...]}, or null), method, grid (bits, symmetric, group_size,
float8, activations), format, mixed (null, or budget, grids, shards), ignore, damping, scratch (what a killed run left,
and goes on from).
"""

import dataclasses
import json
import os
import resource
import sys
import time
import types
from pathlib import Path
from typing import Any

import qpack_worker

# This package alone, without the folder it is in: its neighbours belong to an interpreter that has qpack.
_PARENT = types.ModuleType("quantize")
_PARENT.__path__ = [str(Path(__file__).resolve().parent.parent)]
sys.modules["quantize"] = _PARENT
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import torch  # noqa: E402
from transformers import AutoConfig  # noqa: E402

from quantize.gram.allocate import TooSmall  # noqa: E402
from quantize.gram.checkpoint import Folder, assemble, copy_the_rest  # noqa: E402
from quantize.gram.formats import FORMATS  # noqa: E402
from quantize.gram.grid import Grid  # noqa: E402
from quantize.gram.layer import NotFinite, Settings  # noqa: E402
from quantize.gram.skeleton import Unsupported  # noqa: E402
from quantize.gram.stream import Run  # noqa: E402
from quantize.gram.survey import Mixed, Survey, chosen  # noqa: E402

VERSION = "3"


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Quantize and save; everything but weights and config is copied from the source as it is."""
    started = time.monotonic()
    qpack_worker.progress(0, 0, "reading the model")
    checkpoint = Path(job["checkpoint"])
    config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    dtype = config.dtype if config.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16

    def grid_of(asked: dict[str, Any]) -> Grid:
        return Grid(**asked, scale_dtype=dtype, portable=FORMATS[job["format"]].portable)

    settings = Settings(job["method"], grid_of(job["grid"]), job["damping"], tuple(job["ignore"]), job["format"])
    target = Path(job["out"]) / "checkpoint"
    target.mkdir(parents=True, exist_ok=True)
    source = Folder(checkpoint)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, scratch, save_every = rows_of(job["tokens"]), Path(job["scratch"]), job.get("save_every", 30.0)
    try:
        if mixed := job["mixed"]:
            wanted = Mixed(mixed["budget"], tuple(map(grid_of, mixed["grids"])), mixed["shards"])
            measured = Survey(
                source, config, rows, settings, scratch / "survey", device, measuring, save_every, mixed=wanted
            )
            measured.run()
            settings = dataclasses.replace(settings, chosen=chosen(measured.records, wanted))
        run = Run(source, config, rows, settings, scratch, device, qpack_worker.progress, save_every)
        parts = run.run()
    except TooSmall as error:
        qpack_worker.fail(error, "Raise `quantize.budget`, or put fewer layers on `ignore`.", kind="bad_input")
    except Unsupported as error:
        qpack_worker.fail(error, "Take `engine: llmcompressor`.", kind="bad_input")
    except NotFinite as error:
        qpack_worker.fail(
            error, "The source model or its calibration rows are at fault: look at them.", kind="bad_input"
        )

    qpack_worker.progress(0, 0, "writing the checkpoint")
    linears, grids = count(run, settings)
    ignored = sorted(set(linears) - set(grids))
    written = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    written["quantization_config"] = FORMATS[settings.format].config(grids, ignored)
    assemble(parts, target)
    (target / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    copy_the_rest(checkpoint, target)
    report = {"engine": "gram", "version": VERSION, "method": settings.method, "sites": run.records}
    (target / "gram_report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({name: round(value, 3) for name, value in run.clock.seconds.items()}))
    return {
        "engine_version": VERSION,
        "quantized_layers": len(grids),
        "linear_layers": len(linears),
        "seconds": time.monotonic() - started,
        "peak_memory_bytes": peak,
    }


def rows_of(path: str | None) -> list[list[int]]:
    """Calibration rows of token ids."""
    if not path:
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line)["input_ids"] for line in file]


def measuring(done: int, total: int, what: str) -> None:
    """Progress of the survey that mixed precision starts with."""
    qpack_worker.progress(done, total, f"{what} measured")


def count(run: Run, settings: Settings) -> tuple[list[str], dict[str, Grid]]:
    """Full names of all linear layers, and of those that were quantized with the grid of each."""
    linears: dict[str, Grid] = {}
    left = ["lm_head"]
    for index, sites in enumerate(run.sites):
        layer = f"{run.prefix}.{index}"
        found = {f"{layer}.{name}": settings.grid_of(layer, site) for site in sites for name in site.readers}
        left += [name for below in run.model.linears(index) if (name := f"{layer}.{below}") not in found]
        linears |= found
    return [*linears, *left], {name: grid for name, grid in linears.items() if not settings.ignores(name)}


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    qpack_worker.main(work)
