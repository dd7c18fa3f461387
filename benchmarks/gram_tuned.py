"""gram with and without tuning, on several seeds' calibration rows: seconds, and held-out divergence and perplexity.

    python gram_tuned.py CHECKPOINT OUT --rows ROWS,ROWS --held-out NAME=ROWS,NAME=ROWS --iterations 0,64,200

ROWS are files of JSON lines, {"input_ids": [...]}: calibration rows, one file a seed, and held-out windows of one
length, one file a kind of text. Needs torch, transformers and safetensors; takes a GPU where there is one. Prints, as
Markdown and for each number of iterations: seconds (the median over seeds), peak memory of the device or process, and
for each kind of text the mean KL divergence from the source (the whole distribution, in nats a token) and the
perplexity. Everything also goes to OUT/gram_tuned.json, window by window.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from quantize.gram.checkpoint import Folder  # noqa: E402
from quantize.gram.formats import FORMATS  # noqa: E402
from quantize.gram.grid import Grid  # noqa: E402
from quantize.gram.job import work  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_WINDOWS = 10
_PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")


def main() -> None:
    """Quantize and measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "out"):
        parser.add_argument(name, type=lambda path: Path(path).absolute())
    parser.add_argument("--rows", type=lambda text: [Path(path).absolute() for path in text.split(",")], required=True)
    parser.add_argument("--held-out", type=named, required=True)
    parser.add_argument("--iterations", type=lambda text: list(map(int, text.split(","))), default=[0, 64, 200])
    parser.add_argument("--method", default="awq+gptq")
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--group-size", type=int, default=64)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    grid = Grid(4, options.symmetric, options.group_size)
    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.bfloat16).to(DEVICE).eval()
    source = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = {name: scores(model, windows) for name, windows in options.held_out.items()}
    found: list[dict[str, Any]] = []
    for iterations in options.iterations:
        for seed, rows in enumerate(options.rows):
            answer = quantized(options, rows, iterations)
            model.load_state_dict({**source, **weights(options.out / "checkpoint", grid)})
            held = {name: measured(model, options.held_out[name], expected[name]) for name in expected}
            found.append({"iterations": iterations, "seed": seed, **answer, "held_out": held})
            print(f"{iterations} iterations, seed {seed}: {answer['seconds']:.1f} s", file=sys.stderr)
    (options.out / "gram_tuned.json").write_text(json.dumps(found))
    print(table(options, found))


def named(text: str) -> dict[str, Tensor]:
    """NAME=ROWS, several with commas: windows by the name of their text."""
    files = dict(part.split("=", 1) for part in text.split(","))
    return {name: torch.tensor([json.loads(line)["input_ids"] for line in open(files[name])]) for name in files}


def quantized(options: argparse.Namespace, rows: Path, iterations: int) -> dict[str, Any]:
    """What gram answered; the checkpoint is in OUT/checkpoint."""
    shutil.rmtree(options.out / "scratch", ignore_errors=True)
    grid = {"bits": 4, "symmetric": options.symmetric, "group_size": options.group_size}
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if DEVICE == "cuda" else 0
    answer = work(
        {
            "checkpoint": str(options.checkpoint), "tokens": str(rows), "method": options.method, "grid": grid,
            "format": "compressed-tensors", "mixed": None, "ignore": ["lm_head"], "damping": 0.01,
            "iterations": iterations, "scratch": str(options.out / "scratch"), "out": str(options.out),
        },
        lambda *_: None,
    )  # fmt: skip
    return {"seconds": answer["seconds"], "peak": answer["peak_memory_bytes"] - before, "phases": answer["phases"]}


def weights(folder: Path, grid: Grid) -> dict[str, Tensor]:
    """The artifact's tensors as plain weights, as a server computes with them."""
    source = Folder(folder)
    tensors = source.read(source.names(), "cpu")
    for name in [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]:
        parts = {part: tensors.pop(f"{name}.{part}") for part in _PARTS if f"{name}.{part}" in tensors}
        layer = FORMATS["compressed-tensors"].read(parts, grid)
        tensors[f"{name}.weight"] = layer.weights(grid).to(torch.bfloat16)
    return {name: tensor.to(DEVICE) for name, tensor in tensors.items()}


@torch.no_grad()
def scores(model: Any, windows: Tensor) -> list[Tensor]:
    """Log-probabilities of all next tokens, [windows, tokens - 1, vocabulary] for a few windows each."""
    return [torch.log_softmax(model(few.to(DEVICE)).logits[:, :-1].float(), -1) for few in windows.split(_WINDOWS)]


@torch.no_grad()
def measured(model: Any, windows: Tensor, expected: list[Tensor]) -> dict[str, list[float]]:
    """Each window's `kl` from the source and mean negative log-likelihood `nll`, in nats a token."""
    kl, nll = [], []
    for few, wanted in zip(windows.split(_WINDOWS), expected, strict=True):
        (found,) = scores(model, few)
        kl += (wanted.exp() * (wanted - found)).sum(-1).mean(-1).tolist()
        nll += (-found.gather(-1, few[:, 1:, None].to(DEVICE))).squeeze(-1).mean(-1).tolist()
    return {"kl": kl, "nll": nll}


def table(options: argparse.Namespace, found: list[dict[str, Any]]) -> str:
    """A line for each number of iterations."""
    names = list(options.held_out)
    lines = [
        "| Iterations | Seeds | Seconds | Peak GB | " + " | ".join(f"{name}: KL | Perplexity" for name in names) + " |",
        "| --- " * (4 + 2 * len(names)) + "|",
    ]
    for iterations in options.iterations:
        mine = [run for run in found if run["iterations"] == iterations]
        cells = [str(iterations), str(len(mine)), f"{statistics.median(run['seconds'] for run in mine):.1f}"]
        cells.append(f"{max(run['peak'] for run in mine) / 1e9:.2f}")
        for name in names:
            kl, nll = (
                torch.tensor([run["held_out"][name][key] for run in mine], dtype=torch.float64).mean()
                for key in ("kl", "nll")
            )
            cells += [f"{float(kl):.4f}", f"{float(nll.exp()):.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
