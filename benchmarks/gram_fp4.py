"""gram beside other engines in FP4, by their real artifacts: held-out divergence and perplexity.

    python benchmarks/gram_fp4.py CHECKPOINT OUT --rows ROWS,ROWS --held-out NAME=ROWS,NAME=ROWS \
        --runs gram:awq+gptq:NVFP4 gram:awq+gptq:NVFP4:64 llmcompressor:rtn:NVFP4 llmcompressor:gptq:NVFP4

ROWS are files of JSON lines, {"input_ids": [...]}: calibration rows, one file a seed, and held-out windows of one
length, one file a kind of text. A run is ENGINE:METHOD:SCHEME, and the iterations of tuning. Every engine's worker runs
in its own environment as in a build (QPACK_ENV_GRAM and so on name interpreters where qpack has none); what it wrote is
read as vLLM reads it, and measured in plain transformers: weights unpacked, and where the scheme rounds activations the
inputs of each quantized layer rounded as FP4 kernels do, NVFP4's by the stored scale. Needs torch, transformers and
qpack.

Every run's figures go to OUT/runs-WORKER.jsonl at once; with `--worker 1/4` each of four processes makes every fourth.
`--table` prints, as Markdown, what is there, with 90 % intervals (over seeds and windows) of what each run has less
than the first of its scheme.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gram import work
from gram_autoround import difference, windows
from gram_tuned import measured, named, scores

from quantize.engines.catalog import ENGINES
from quantize.engines.protocol import Paths, Request
from quantize.engines.workers.engine_answer import Answer
from quantize.gram import smooth
from quantize.gram.checkpoint import Folder
from quantize.gram.formats import FORMATS
from quantize.gram.grid import Grid

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRIDS = {
    name: Grid(4, True, width, fp4=kind, activations=not name.endswith("A16"))
    for kind, width, names in (("nv", 16, ("NVFP4", "NVFP4A16")), ("mx", 32, ("MXFP4", "MXFP4A16")))
    for name in names
}  # type: ignore[misc]
_PARTS = ("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale")


def main() -> None:
    """Quantize and measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "out"):
        parser.add_argument(name, type=lambda path: Path(path).absolute())
    parser.add_argument("--rows", type=lambda text: [Path(one).absolute() for one in text.split(",")], required=True)
    parser.add_argument("--held-out", type=named, required=True)
    parser.add_argument("--runs", nargs="*", default=[])
    parser.add_argument("--worker", default="0/1")
    parser.add_argument("--variant", default=DEVICE, choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no run is started")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.table:
        print(table(options))
        return
    started = time.monotonic()
    worker, of = map(int, options.worker.split("/"))
    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.bfloat16).to(DEVICE).eval()
    source = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = {name: scores(model, few) for name, few in options.held_out.items()}
    everything = [(run, seed) for seed in range(len(options.rows)) for run in options.runs]
    with (options.out / f"runs-{worker}.jsonl").open("a") as file:

        def write(run: str, seed: int, found: dict[str, Any]) -> None:
            file.write(json.dumps({"run": run, "seed": seed, **found}) + "\n")
            file.flush()

        if worker == 0:
            held = {name: measured(model, few, expected[name]) for name, few in options.held_out.items()}
            write("source", 0, {"held_out": held, "seconds": 0.0})
        for run, seed in everything[worker::of]:
            if time.monotonic() - started > options.seconds:
                break
            out = options.out / f"{worker}"
            try:
                answer = quantized(options, run, seed, out)
                with served(model, source, out / "checkpoint", GRIDS[run.split(":")[2]]):
                    held = {name: measured(model, few, expected[name]) for name, few in options.held_out.items()}
                write(run, seed, {**answer, "held_out": held})
                shown = " ".join(f"{name} {sum(one['kl']) / len(one['kl']):.4f}" for name, one in held.items())
                print(f"{worker}: {run}, seed {seed}: {shown}, {answer['seconds']:.1f} s", flush=True)
            except Exception:
                write(run, seed, {"error": traceback.format_exc()[-2000:]})
                traceback.print_exc()
            shutil.rmtree(out, ignore_errors=True)


def quantized(options: argparse.Namespace, run: str, seed: int, out: Path) -> dict[str, Any]:
    """What the engine's worker answered; the artifact is in `out`."""
    name, method, scheme, *more = run.split(":")
    engine, iterations = ENGINES[name], int(more[0]) if more else 0
    asked = Request(method, scheme, None, ("lm_head",), 0.01, False, target="hopper", iterations=iterations)
    job = engine.job(asked, Paths(options.checkpoint, options.rows[seed], out / "scratch"))
    answer: dict[str, Any] = work(engine.ENVIRONMENT, engine.WORKER, job, Answer, out, options.variant)
    return {"seconds": answer["seconds"], "peak": answer["peak_memory_bytes"]}


@contextlib.contextmanager
def served(model: nn.Module, source: dict[str, Tensor], artifact: Path, grid: Grid) -> Iterator[None]:
    """In the block the model has the artifact's weights, and rounds what a server rounds."""
    folder, handles = Folder(artifact), []
    tensors = folder.read(folder.names(), DEVICE)
    for name in [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]:
        parts = {part: tensors.pop(f"{name}.{part}") for part in _PARTS if f"{name}.{part}" in tensors}
        layer = FORMATS["compressed-tensors"].read(parts, grid)
        tensors[f"{name}.weight"] = layer.weights(grid).to(torch.bfloat16)
        if grid.activations:
            assert (layer.inputs is not None) == grid.input_scaled, name

            def hook(_: nn.Module, args: tuple[Tensor, ...], common: Tensor | None = layer.inputs) -> Tensor:
                return smooth.rounded(args[0].float(), grid, common).to(args[0].dtype)

            handles.append(model.get_submodule(name).register_forward_pre_hook(hook))
    known = {name: tensor for name, tensor in tensors.items() if name in source}
    model.load_state_dict({**source, **known})
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def table(options: argparse.Namespace) -> str:
    """What the workers wrote, a line per run, and each scheme's differences from its first run."""
    records = [json.loads(line) for path in sorted(options.out.glob("runs-*.jsonl")) for line in path.open()]
    made = [record for record in records if "held_out" in record]
    names = list(options.held_out)
    lines = ["| Run | Seeds | Seconds | " + " | ".join(f"{name}: KL | Perplexity" for name in names) + " |"]
    lines.append("| --- " * (3 + 2 * len(names)) + "|")
    runs = sorted({record["run"] for record in made}, key=lambda run: (run.split(":")[2:3], options.runs.index(run))
                  if run in options.runs else ([], -1))  # fmt: skip
    for run in runs:
        mine = [record for record in made if record["run"] == run]
        cells = [run, str(len(mine)), f"{sorted(record['seconds'] for record in mine)[len(mine) // 2]:.1f}"]
        for name in names:
            kl, nll = (windows(mine, name, key).mean() for key in ("kl", "nll"))
            cells += [f"{float(kl):.4f}", f"{float(nll.exp()):.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| Less | " + " | ".join(f"{name}: KL | ln perplexity" for name in names) + " |"]
    lines.append("| --- " * (1 + 2 * len(names)) + "|")
    firsts: dict[str, str] = {}
    for run in runs:
        first = firsts.setdefault(run.split(":")[2] if ":" in run else run, run)
        if run == first:
            continue
        mine, theirs = ({r["seed"]: r for r in made if r["run"] == one} for one in (first, run))
        both = sorted(mine.keys() & theirs.keys())
        cells = [f"{first} less {run}"]
        for name in names:
            for key in ("kl", "nll"):
                left, right = (windows([part[seed] for seed in both], name, key) for part in (mine, theirs))
                cells.append(difference(left - right))
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"\n{r['run']}, seed {r['seed']}: {r['error'][-300:]}" for r in records if "error" in r]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
