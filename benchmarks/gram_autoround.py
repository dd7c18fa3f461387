"""gram beside AutoRound, with the same rows: seconds, and held-out divergence and perplexity.

    python gram_autoround.py CHECKPOINT OUT --rows ROWS,ROWS --held-out NAME=ROWS,NAME=ROWS \
        --runs "gram iterations=64,symmetric=1" "autoround iterations=200,symmetric=1"

ROWS are files of JSON lines, {"input_ids": [...]}: calibration rows, one file a seed, and held-out windows of one
length, one file a kind of text. A run is an engine and what differs from `bits=4,group_size=64,symmetric=0`; gram's
also takes method, signed (scales that may be negative, 1 where symmetric), rows a step, and range_rate, AutoRound's
samples and batch_size. Needs torch, transformers, safetensors, and auto-round for its runs; takes a GPU where there is
one.

Every run's figures go to OUT/runs-WORKER.jsonl at once, window by window, so that runs can be stopped; with `--worker
1/4` each of four processes makes every fourth. `--table` prints, as Markdown, what is there: the mean KL divergence
from the source (whole distributions, nats a token), perplexity, and what each run has less than the first of its
scheme and of the same seeds, with 90 % intervals from a bootstrap over seeds and windows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from gram_tuned import measured, named, scores
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from quantize.gram import formats, tune  # noqa: E402
from quantize.gram.checkpoint import Folder  # noqa: E402
from quantize.gram.grid import Grid  # noqa: E402
from quantize.gram.layer import Settings  # noqa: E402
from quantize.gram.ranks import device_of  # noqa: E402
from quantize.gram.stream import Run  # noqa: E402

DEVICE = device_of(0)
_DRAWS = 2000
_RANGE_RATE = tune._RANGE_RATE


class Plain(formats.CompressedTensors):
    """Weights as a server computes with them, of any number of bits."""

    def tensors(self, layer: formats.Stored, grid: Grid) -> dict[str, Tensor]:
        """One, in 16 bits."""
        return {"weight": layer.weights(grid).to(grid.scale_dtype)}


def main() -> None:
    """Quantize and measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "out"):
        parser.add_argument(name, type=lambda path: Path(path).absolute())
    parser.add_argument("--rows", type=lambda text: text.split(","), required=True)
    parser.add_argument("--held-out", type=named, required=True)
    parser.add_argument("--runs", nargs="*", default=[])
    parser.add_argument("--worker", default="0/1")
    parser.add_argument("--layers", type=int, default=0, help="the first ones only, for a trial; 0: all")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no run is started")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.table:
        print(table(options))
        return
    formats.FORMATS["plain"] = Plain()
    started = time.monotonic()
    worker, of = map(int, options.worker.split("/"))
    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.bfloat16).to(DEVICE).eval()
    source = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = {name: scores(model, windows) for name, windows in options.held_out.items()}
    everything = [(run, seed) for run in options.runs for seed in range(len(options.rows))]
    with (options.out / f"runs-{worker}.jsonl").open("a") as file:

        def write(run: str, seed: int, found: dict[str, Any]) -> None:
            file.write(json.dumps({"run": run, "seed": seed, **found}) + "\n")
            file.flush()

        if worker == 0:
            held = {name: measured(model, windows, expected[name]) for name, windows in options.held_out.items()}
            write("source", 0, {"held_out": held, "seconds": 0.0})
        for run, seed in everything[worker::of]:
            if time.monotonic() - started > options.seconds:
                break
            try:
                engine, asked = settings_of(run)
                rows = [json.loads(line)["input_ids"] for line in Path(options.rows[seed]).read_text().splitlines()]
                weights, found = {"gram": gram, "autoround": autoround}[engine](options, asked, rows)
                model.load_state_dict({**source, **{name: t.to(DEVICE) for name, t in weights.items()}})
                held = {name: measured(model, options.held_out[name], expected[name]) for name in expected}
                write(run, seed, {**found, "held_out": held})
                shown = " ".join(f"{name} {sum(one['kl']) / len(one['kl']):.4f}" for name, one in held.items())
                print(f"{worker}: {run}, seed {seed}: {shown}, {found['seconds']:.1f} s", flush=True)
            except Exception:
                write(run, seed, {"error": traceback.format_exc()[-2000:]})
                traceback.print_exc()


def settings_of(run: str) -> tuple[str, dict[str, Any]]:
    """The engine, and what is asked of it."""
    engine, _, more = run.partition(" ")
    asked: dict[str, Any] = {"bits": 4, "group_size": 64, "symmetric": 0, "iterations": 0, "method": "awq+gptq"}
    for part in filter(None, more.split(",")):
        name, _, value = part.partition("=")
        asked[name] = float(value) if "." in value else int(value) if value.isdigit() else value
    asked.setdefault("signed", asked["symmetric"])
    return engine, asked


def gram(
    options: argparse.Namespace, asked: Mapping[str, Any], rows: list[list[int]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights by name, and seconds, peak and phases."""
    config = AutoConfig.from_pretrained(options.checkpoint)
    if options.layers:
        config.num_hidden_layers = options.layers
    grid = Grid(asked["bits"], bool(asked["symmetric"]), asked["group_size"], signed=bool(asked["signed"]))
    tuning = tune.Tuning(asked["iterations"], asked.get("rows", tune.Tuning.rows))
    tune._RANGE_RATE = asked.get("range_rate", _RANGE_RATE)
    settings = Settings(asked["method"], grid, 0.01, ("lm_head",), "plain", tuning=tuning)
    found: dict[str, Tensor] = {}
    before = torch.cuda.memory_allocated() if DEVICE.type == "cuda" else 0
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def write(tensors: dict[str, Tensor], path: Path, **_: str) -> None:
        if path.name.startswith("layer-"):
            found.update({name: tensor.cpu() for name, tensor in tensors.items()})

    scratch = options.out / f"scratch-{os.getpid()}"
    started = time.monotonic()
    run = Run(Folder(options.checkpoint), config, rows, settings, scratch, DEVICE, lambda *_: None, float("inf"), write)
    run.run()
    seconds = time.monotonic() - started
    shutil.rmtree(scratch)
    peak = torch.cuda.max_memory_allocated() - before if DEVICE.type == "cuda" else 0
    return found, {"seconds": seconds, "peak": peak, "phases": run.clock.seconds}


def autoround(
    options: argparse.Namespace, asked: Mapping[str, Any], rows: list[list[int]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The same of AutoRound, by its defaults but for what is asked."""
    from auto_round import AutoRound

    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.bfloat16)
    if options.layers:
        model.model.layers = model.model.layers[: options.layers]
        model.config.num_hidden_layers = options.layers
    rows = rows[: asked.get("samples", len(rows))]
    data = [{"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row)).long()} for row in rows]
    engine = AutoRound(
        model, AutoTokenizer.from_pretrained(options.checkpoint), bits=asked["bits"], group_size=asked["group_size"],
        sym=bool(asked["symmetric"]), iters=asked["iterations"], nsamples=len(rows), seqlen=len(rows[0]), dataset=data,
        batch_size=asked.get("batch_size", 8), device_map=0 if DEVICE.type == "cuda" else "cpu",
    )  # fmt: skip
    started = time.monotonic()
    made = engine.quantize()
    seconds = time.monotonic() - started
    state = (made[0] if isinstance(made, tuple) else made).state_dict()
    return {name: tensor for name, tensor in state.items() if name.endswith("weight")}, {"seconds": seconds}


def table(options: argparse.Namespace) -> str:
    """What the workers wrote, a line per run, and each scheme's differences from its first run."""
    records = [json.loads(line) for path in sorted(options.out.glob("runs-*.jsonl")) for line in path.open()]
    made = [record for record in records if "held_out" in record]
    names = list(options.held_out)
    lines = [
        "| Run | Seeds | Seconds | Peak GB | " + " | ".join(f"{name}: KL | Perplexity" for name in names) + " |",
        "| --- " * (4 + 2 * len(names)) + "|",
    ]
    runs = list(dict.fromkeys(record["run"] for record in made))
    for run in runs:
        mine = [record for record in made if record["run"] == run]
        seconds = sorted(record["seconds"] for record in mine)[len(mine) // 2]
        cells = [run, str(len(mine)), f"{seconds:.1f}", f"{max(record.get('peak', 0) for record in mine) / 1e9:.2f}"]
        for name in names:
            kl, nll = (windows(mine, name, key).mean() for key in ("kl", "nll"))
            cells += [f"{float(kl):.4f}", f"{float(nll.exp()):.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| Less | " + " | ".join(f"{name}: KL | ln perplexity" for name in names) + " |"]
    lines.append("| --- " * (1 + 2 * len(names)) + "|")
    firsts: dict[Any, str] = {}
    for run in runs:
        engine, asked = settings_of(run)
        first = firsts.setdefault((asked["bits"], asked["group_size"], asked["symmetric"]), run)
        if run == first or engine == "source":
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


def windows(records: list[dict[str, Any]], name: str, key: str) -> Tensor:
    """A figure of every window, [seeds, windows]."""
    return torch.tensor([record["held_out"][name][key] for record in records], dtype=torch.float64)


def difference(paired: Tensor) -> str:
    """Mean and 90 % interval of differences [seeds, windows]: seeds and windows are drawn independently."""
    draw = torch.Generator().manual_seed(0)
    seeds, count = paired.shape
    if not seeds:
        return ""
    means = [
        paired[torch.randint(seeds, (seeds,), generator=draw)][:, torch.randint(count, (count,), generator=draw)].mean()
        for _ in range(_DRAWS)
    ]
    low, high = torch.stack(means).quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    return f"{float(paired.mean()):+.4f} [{low:+.4f}, {high:+.4f}]"


if __name__ == "__main__":
    main()
