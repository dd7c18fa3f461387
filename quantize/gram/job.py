"""A job: quantize a checkpoint into one that vLLM serves.

Job: checkpoint, tokens (JSON lines of {"input_ids": [...]}, or null), method, grid (bits, symmetric, group_size,
float8, activations, fp4), format, mixed (null, or budget, grids, choices, shards, per_token), ignore, damping,
iterations (steps of tuning a layer), scratch (a killed run's layers, from which this one resumes), out (a folder; the
checkpoint is written to `out/checkpoint`).
"""

import dataclasses
import json
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from .allocate import TooSmall
from .checkpoint import Folder, assemble, copy_the_rest
from .formats import FORMATS
from .grid import Grid
from .layer import NotFinite, Settings
from .names import Unsupported
from .ranks import Ranks, device_of
from .stream import Run
from .survey import Mixed, Survey, experts_read
from .tune import Tuning

VERSION = "4"


JsonObject: TypeAlias = Mapping[str, Any]
"""A job as its file holds it, and the result as `python -m gram` prints it."""

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what); total 0: unknown."""


class Impossible(Exception):
    """The job can't be done with this model or these rows; `hint` says what to change."""

    def __init__(self, what: Exception, hint: str) -> None:
        super().__init__(str(what))
        self.hint = hint


def _config(checkpoint: Path, *, trusted: bool) -> PretrainedConfig:
    """The model's config: transformers' own class where it has one, else, where that is `trusted`, the checkpoint's
    code. Raises Impossible.
    """
    kind = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("model_type")
    own = trusted and kind not in CONFIG_MAPPING
    try:
        return AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=own)
    except ValueError as error:
        if trusted or "trust_remote_code" not in str(error):
            raise
        what = ValueError(f"the checkpoint ships Python code for '{kind}', which isn't run by default")
        raise Impossible(what, "Read the code, then set `model.trust_remote_code: true`.") from error


def work(job: JsonObject, progress: Progress, ranks: Ranks | None = None) -> JsonObject:
    """Quantize and save; everything except weights and config is copied from the source unchanged.

    `ranks` share the work; each calls this, and the first one alone writes the checkpoint and calls `progress`.
    Returns engine_version, quantized_layers, linear_layers, seconds, peak_memory_bytes (of the GPU where there is one,
    of the process that had most) and phases (seconds by phase). Raises Impossible.
    """
    started = time.monotonic()
    ranks = ranks or Ranks(device=device_of(0))
    if ranks.first:
        progress(0, 0, "reading the model")
    checkpoint = Path(job["checkpoint"])
    config = _config(checkpoint, trusted=job.get("trust_remote_code", False))
    dtype = config.dtype if config.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16

    def grid_of(asked: dict[str, Any]) -> Grid:
        # Of 8 bits one step more is nothing; kernels that round inputs too expect positive scales.
        signed = asked["symmetric"] and asked["bits"] < 8 and not (asked.get("fp4") or asked.get("activations"))
        return Grid(**asked, scale_dtype=dtype, portable=FORMATS[job["format"]].portable, signed=signed)

    settings = Settings(job["method"], grid_of(job["grid"]), job["damping"], tuple(job["ignore"]), job["format"])
    target = Path(job["out"]) / "checkpoint"
    target.mkdir(parents=True, exist_ok=True)
    source = Folder(checkpoint)
    device = ranks.device

    def measuring(done: int, total: int, what: str) -> None:
        progress(done, total, f"{what} measured")

    rows, scratch, save_every = rows_of(job["tokens"]), Path(job["scratch"]), job.get("save_every", 30.0)
    try:
        if mixed := job["mixed"]:
            able = tuple(grid and grid_of(grid) for grid in mixed["grids"])
            choices = tuple((choice["layers"], tuple(choice["grids"])) for choice in mixed["choices"])
            read = experts_read(config) if mixed["per_token"] else 1.0
            wanted = Mixed(mixed["budget"], able, mixed["shards"], choices, read)
            measured = Survey(
                source, config, rows, settings, scratch / "survey", device, measuring, save_every,
                ranks=ranks, mixed=wanted,
            )  # fmt: skip
            measured.run()
            settings = measured.allocated()
        settings = dataclasses.replace(settings, tuning=Tuning(job["iterations"]))
        run = Run(source, config, rows, settings, scratch, device, progress, save_every, ranks=ranks)
        parts = run.run()
    except TooSmall as error:
        raise Impossible(error, "Raise `quantize.budget`, or remove layers from `ignore`.") from error
    except Unsupported as error:
        raise Impossible(error, "Use `engine: llmcompressor`.") from error
    except NotFinite as error:
        raise Impossible(
            error, "Check the source model and its calibration rows for NaN or infinite values."
        ) from error

    linears, grids = count(run, settings)
    if ranks.first:
        progress(0, 0, "writing the checkpoint")
        ignored = sorted(set(linears) - set(grids))
        if FORMATS[settings.format].patterns:
            # Servers give other names to parts of a model (MiMo's layers for multi-token prediction).
            ignored += [pattern for pattern in settings.ignore if pattern.startswith("re:")]
        written = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        written["quantization_config"] = FORMATS[settings.format].config(grids, ignored)
        assemble(parts, target)
        (target / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        copy_the_rest(checkpoint, target)
        report = {"engine": "gram", "version": VERSION, "method": settings.method, "sites": run.records}
        (target / "gram_report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return {
        "engine_version": VERSION,
        "quantized_layers": len(grids),
        "linear_layers": len(linears),
        "seconds": time.monotonic() - started,
        "peak_memory_bytes": max(ranks.gathered(_peak(device))),
        "phases": {name: round(value, 3) for name, value in run.clock.seconds.items()},
    }


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rows_of(path: str | None) -> list[list[int]]:
    """Calibration rows of token ids."""
    if not path:
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line)["input_ids"] for line in file]


def count(run: Run, settings: Settings) -> tuple[list[str], dict[str, Grid]]:
    """The checkpoint's names of all linear layers, and of those that were quantized with the grid of each."""
    grids: dict[str, Grid] = {}
    left = ["lm_head"]
    for index, sites in enumerate(run.sites):
        layer = f"{run.prefix}.{index}"
        named = run.model.names.module
        grids |= {named(f"{layer}.{name}"): settings.grid_of(layer, site) for site in sites for name in site.readers}
        left += [name for below in run.model.linears(index) if (name := named(f"{layer}.{below}")) not in grids]
    # What else the checkpoint has of matrices: encoders, projectors, layers for speculative decoding.
    read = {*grids, *left}
    left += [name for tensor in run.matrices() if (name := tensor.removesuffix(".weight")) not in read]
    return [*grids, *left], grids
