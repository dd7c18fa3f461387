"""Speed and memory of the Llama-3-8B shape in vLLM, quantized in five ways, on one GPU. Random weights.

    python benchmarks/llama_gpu.py --out DIR            # bf16, FP8, AWQ, GPTQ, INT8, one after another
    python benchmarks/llama_gpu.py --out DIR --only gptq,int8-w8a8
    python benchmarks/llama_gpu.py --table DIR/*.json   # the table of results that are there

It is `qpack bench` for a machine that has vLLM in its own Python and nothing of qpack's environment but numpy,
pydantic, psutil and httpx: the same server, load and readings, and the same JSON. A model that is in DIR already isn't
measured again. No model is begun that `--budget` seconds don't leave time for; one that fails doesn't stop the others.
`--shape tiny --concurrency 1,4 --eager` tries it on a CPU.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import httpx  # noqa: F401
except ImportError:  # its successor has the same names, and is what newer libraries bring
    import httpx2

    sys.modules["httpx"] = httpx2

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from llama_shapes import QUANTIZED, SHAPE, make  # noqa: E402

from evals.measure import bench  # noqa: E402
from evals.measure.bench import Benched, BenchModel  # noqa: E402
from evals.measure.eval_specs import Load, PerformanceSpec  # noqa: E402
from evals.server import session  # noqa: E402
from evals.server.codes import OTHER_MODEL  # noqa: E402
from evals.server.vllm_server import Command  # noqa: E402
from qpack.core.errors import EvaluateError, QpackError  # noqa: E402
from qpack.runtime import hardware  # noqa: E402
from qpack.runtime.variables import COMPUTE  # noqa: E402
from quantize.checkpoint import from_config  # noqa: E402
from registry.serving.serving_manifest import ServedModel, ServingEngine, ServingManifest, vllm_arguments  # noqa: E402

MODELS = ("bf16", "fp8-dynamic", "awq", "gptq", "int8-w8a8")
TINY = {
    **SHAPE, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048,
}  # fmt: skip
GIB = 2**30
UNQUANTIZED = 0.9
"""Above this share of the 16-bit size a model wasn't loaded quantized: 8 bits, embeddings left out, are 0.57."""


class Here:
    """A Python as an environment. Processes lose PYTHONPATH, where vLLM may lie, so a script sets it again."""

    name = "here"

    def __init__(self, python: Path, folder: Path) -> None:
        found = os.environ.get("PYTHONPATH", "")
        self.python = folder / "python"
        self.python.write_text(
            f'#!/bin/sh\nPYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}{found}" exec "{python}" "$@"\n' if found else
            f'#!/bin/sh\nexec "{python}" "$@"\n'
        )  # fmt: skip
        self.python.chmod(0o755)
        self.variables = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "NO_COLOR": "1"}
        self.inherits = (COMPUTE,)


def measure(name: str, options: argparse.Namespace, here: Here, load: Load) -> Benched:
    """One model, from its config.json to its figures. Raises QpackError."""
    shape = TINY if options.shape == "tiny" else SHAPE
    folder, machine = options.scratch / f"{options.shape}-{name}", hardware.detect()
    make(folder, QUANTIZED[name], shape=shape, tokenizer=None)
    arguments = {"load-format": "dummy", **({"enforce-eager": True} if options.eager else {})}
    manifest = ServingManifest(
        model=ServedModel(name=folder.name, digest="", served_model_name=folder.name),
        engine=ServingEngine(version="here"),
        hardware=machine.target,
        dtype="auto",
        max_model_len=min(8192, shape["max_position_embeddings"]),
        kv_cache_memory_bytes=GIB if machine.target == "cpu" else None,
        arguments=arguments,
    )

    def command(host: str, port: int) -> list[str]:
        return vllm_arguments(manifest, folder, host=host, port=port)

    said = ""

    def progress(_done: int, _total: int, what: str) -> None:
        nonlocal said
        if what != said:
            said = what
            report(f"{name}: {what}")

    found = bench.start(
        BenchModel(
            served=session.ServedModel(
                folder.name, folder, Command(here.python, command, here.variables), None, manifest.max_model_len
            ),
            hardware=machine,
            dtype="auto",
            random_weights=True,
        ),
        PerformanceSpec(load, seed=0),
        session.Workspace(
            tools={"vllm": here},
            out=options.scratch / "load" / name,
            log=options.out / f"{name}.log",
            progress=progress,
            report=lambda what: report(what),
            limits=session.Limits(start=300.0),
        ),
        against_transformers=False,
    )
    loaded = found.footprint.weights_loaded_bytes if found.footprint else None
    if QUANTIZED[name] and loaded and loaded > UNQUANTIZED * unquantized(shape):
        raise EvaluateError(
            OTHER_MODEL, f"vLLM loaded {loaded / GIB:.2f} GiB of weights: it took the model for unquantized"
        )
    return found


def unquantized(shape: Mapping[str, Any]) -> int:
    """Bytes of the shape's linear layers and embeddings at 16 bits."""
    return sum(2 * math.prod(lengths) for lengths in (from_config.shapes(shape) or {}).values())


def table(found: Sequence[Benched]) -> str:
    """The field's performance table as Markdown: medians over the runs of a level."""
    levels = [level.concurrency for level in found[0].latency.levels]
    loads = " / ".join(map(str, levels))
    head = (
        "",
        "weights GiB",
        "peak activation GiB",
        "CUDA graphs GiB",
        "KV tokens",
        f"output tok/s at {loads} at once",
    )
    head += (f"TTFT p95 ms at {loads}", f"TPOT p50 ms at {loads}", "start s")
    lines = [head, ("---",) * len(head)]
    for one in found:
        held = one.footprint
        sizes = (held.weights_loaded_bytes, held.activation_bytes, held.graph_bytes) if held else (None,) * 3
        runs = [level.runs for level in one.latency.levels]
        lines.append(
            (
                one.quantization,
                *("" if size is None else f"{size / GIB:.2f}" for size in sizes),
                f"{held.kv_cache_tokens:,}" if held else "",
                " / ".join(f"{statistics.median(r.output_tokens_per_second for r in level):,.0f}" for level in runs),
                " / ".join(f"{statistics.median(r.ttft_ms.p95 for r in level):,.1f}" for level in runs),
                " / ".join(
                    f"{statistics.median(r.time_per_output_token_ms.p50 for r in level):,.1f}" for level in runs
                ),
                f"{one.start_seconds:.0f}" if one.start_seconds else "",
            )
        )
    machine = found[0].hardware
    about = f"{machine.name if machine else ''}, {found[0].server}, random weights; failed requests: "
    failed = sum(run.failed for one in found for level in one.latency.levels for run in level.runs)
    return f"{about}{failed}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


STARTED = time.monotonic()


def report(what: str) -> None:
    """A line with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED:5.0f} s] {what}", flush=True)


def main() -> int:
    """Measure what isn't measured yet; exit code 1 when some are missing at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default=",".join(MODELS))
    parser.add_argument("--budget", type=float, default=530.0, help="seconds for all of it")
    parser.add_argument("--concurrency", default="1,16,256")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shape", choices=("llama3-8b", "tiny"), default="llama3-8b")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="the Python that has vLLM")
    parser.add_argument("--table", type=Path, nargs="+", metavar="JSON")
    options = parser.parse_args()
    if options.table:
        print(table([Benched.model_validate_json(path.read_text()) for path in options.table]), end="")
        return 0
    if options.out is None:
        parser.error("--out is missing")
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    options.scratch = Path(tempfile.mkdtemp(prefix="llama-gpu-"))
    here = Here(options.python, options.scratch)
    levels = tuple(map(int, options.concurrency.split(",")))
    load = Load(concurrency=levels, input_tokens=512, output_tokens=128, repeats=options.repeats)
    names, found, longest = options.only.split(","), [], 0.0
    for name in names:
        file, begun = options.out / f"{name}.json", time.monotonic()
        left = options.budget - (begun - STARTED)
        if not file.is_file() and left < (longest or 60.0):
            report(f"{name}: not begun, {left:.0f} s are left")
            continue
        try:
            if not file.is_file():
                file.write_text(measure(name, options, here, load).model_dump_json(indent=1))
                longest = max(longest, time.monotonic() - begun)
            found.append(Benched.model_validate_json(file.read_text()))
        except QpackError as error:
            report(f"{name}: {error}")
        if found:
            (options.out / "performance.json").write_text(f"[{','.join(one.model_dump_json() for one in found)}]\n")
            (options.out / "performance.md").write_text(table(found))
    if found:
        print(table(found), end="")
    report(f"{len(found)} of {len(names)} are there")
    return 0 if len(found) == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
