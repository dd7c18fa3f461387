"""A budget over formats: what the search finds beside what a hand would write down, at the same bits a weight.

    python benchmarks/mixed_formats.py CHECKPOINT OUT --rows ROWS.jsonl --held-out NAME=ROWS.jsonl,...

Rows are JSON lines of {"input_ids": [...]}. Each way is quantized by gram (gptq), and plain transformers scores it in
bfloat16 with the weights that a server computes with: the mean KL divergence from the source over the whole vocabulary
(nats a token) and perplexity. Only schemes that leave inputs alone, so that transformers computes what a server does.
Needs torch, transformers and safetensors.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import time
from pathlib import Path

import torch
from gram_autoround import Plain
from gram_tuned import measured, named, scores
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from quantize.gram import formats  # noqa: E402
from quantize.gram.checkpoint import Folder  # noqa: E402
from quantize.gram.grid import Grid  # noqa: E402
from quantize.gram.layer import Settings  # noqa: E402
from quantize.gram.ranks import device_of  # noqa: E402
from quantize.gram.stream import Run  # noqa: E402
from quantize.gram.survey import Mixed, Survey  # noqa: E402

FOUR, EIGHT, NV = Grid(4, True, 64, signed=True), Grid(8, True, 64), Grid(4, True, 16, fp4="nv")
ATTENTION = "re:.*self_attn.*"
GRIDS: tuple[Grid | None, ...] = (FOUR, EIGHT, NV, None)
WAYS: dict[str, Mixed] = {
    "W4A16 in groups of 64": Mixed(16, GRIDS, choices=(("re:.*", (0,)),)),
    "by hand: attention W8A16, the rest W4A16": Mixed(16, GRIDS, choices=((ATTENTION, (1,)), ("re:.*", (0,)))),
    "search over W4A16, W8A16": Mixed(0, GRIDS, choices=(("re:.*", (0, 1)),)),
    "search over W4A16, W8A16, NVFP4A16, BF16": Mixed(0, GRIDS, choices=(("re:.*", (0, 1, 2, 3)),)),
}
"""A budget of 0 becomes the bits of what was written down by hand."""


def main() -> None:
    """Print a line for each way, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--held-out", type=named, required=True)
    parser.add_argument("--few", type=int, default=0, help="rows and windows, for a trial; 0: all")
    options = parser.parse_args()
    device = device_of(0)
    formats.FORMATS["plain"] = Plain()
    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.bfloat16).to(device).eval()
    source = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    windows = {name: rows[: options.few or len(rows)] for name, rows in options.held_out.items()}
    expected = {name: scores(model, each) for name, each in windows.items()}
    rows = [json.loads(line)["input_ids"] for line in options.rows.read_text().splitlines()]
    rows = rows[: options.few or len(rows)]
    print("| Way | Bits a weight | " + " | ".join(f"{name}: KL | Perplexity" for name in windows) + " | Seconds |")
    print("| --- " * (3 + 2 * len(windows)) + "|")
    by_hand = 0.0
    for way, asked in WAYS.items():
        mixed = asked if asked.budget else dataclasses.replace(asked, budget=by_hand)
        started = time.monotonic()
        weights, bits = quantized(options, rows, mixed, device)
        seconds = time.monotonic() - started
        by_hand = bits if way.startswith("by hand") else by_hand
        model.load_state_dict({**source, **{name: tensor.to(device) for name, tensor in weights.items()}})
        cells = [way, f"{bits:.3f}"]
        for name, each in windows.items():
            found = measured(model, each, expected[name])
            kl, nll = (torch.tensor(found[key]).mean() for key in ("kl", "nll"))
            cells += [f"{float(kl):.4f}", f"{float(nll.exp()):.3f}"]
        print("| " + " | ".join([*cells, f"{seconds:.0f}"]) + " |", flush=True)


def quantized(
    options: argparse.Namespace, rows: list[list[int]], mixed: Mixed, device: torch.device
) -> tuple[dict[str, Tensor], float]:
    """Weights by name, and the bits a weight that they take."""
    config = AutoConfig.from_pretrained(options.checkpoint)
    settings = Settings("gptq", FOUR, 0.01, ("lm_head",), "plain")
    scratch = options.out / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    where = (Folder(options.checkpoint), config, rows)
    rest = (device, lambda *_: None, float("inf"))
    survey = Survey(*where, settings, scratch / "survey", *rest, mixed=mixed)
    survey.run()
    settings = survey.allocated()
    found: dict[str, Tensor] = {}

    def write(tensors: dict[str, Tensor], path: Path, **_: str) -> None:
        if path.name.startswith("layer-"):
            found.update({name: tensor.cpu() for name, tensor in tensors.items()})

    Run(*where, settings, scratch, *rest, write).run()
    shutil.rmtree(scratch)
    spent = total = 0
    for record in survey.records:
        grid = settings.chosen.get(f"{record['layer']} {record['site']}")
        total += record["weights"]
        spent += record["bits"][mixed.grids.index(grid)]
    return found, spent / total


if __name__ == "__main__":
    main()
