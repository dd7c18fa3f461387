"""The estimate of the KL divergence against the divergence itself, over roundings of a model, without a server.

    python benchmarks/divergence.py CHECKPOINT TEXTS.jsonl OUT --interpreter PYTHON [--field passage] [--windows 26]
        [--window-tokens 128] [--whole-positions 128] [--bits 3,4,6,8]
    python benchmarks/divergence.py --table OUT [OUT ...]
    python benchmarks/divergence.py --errors 32,64,128,256 --table OUT [OUT ...]

PYTHON has torch and transformers: that of qpack's environment `transformers`. `divergence_worker.py` scores the windows
there, with the model and with its linears rounded to the nearest, and keeps what a server gives (lists of the 128 most
probable tokens everywhere, whole distributions at a random sample of positions) and the divergence over the whole
vocabulary at every position, which a server doesn't give. A scored artifact is a file in OUT and stays.

The table has, for each artifact: the divergence, the lists' lower bound, the estimate with its interval from the stored
whole distributions, the estimate's error over 200 other samples of as many positions (mean, root mean square, largest),
and how many of 200 intervals hold the mean over all windows when windows are drawn from them with replacement.

`--errors` prints instead, for samples of so many positions, the error over 300 samples: of each artifact, and the
smallest, middle and largest of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from evals.measure import divergence
from evals.measure.divergence import TopK
from evals.stats import divergence_estimate, estimates
from evals.stats.divergence_estimate import WHOLE, choose, mean_divergence, window_sums
from qpack.core.findings import Divergences, WindowDivergence

WORKER = Path(__file__).with_name("divergence_worker.py")
DRAWS, RESAMPLES, SAMPLES = 200, 999, 300


def artifacts(bits: list[int]) -> list[dict[str, object]]:
    """Every rounding: bits x group size (None: a row) x zero point or none."""
    return [
        {"name": f"w{b}-{size or 'row'}-{'sym' if symmetric else 'asym'}", "bits": b, "group_size": size,
         "symmetric": symmetric}
        for b in bits for size in (32, 64, None) for symmetric in (True, False)
    ]  # fmt: skip


def score(args: argparse.Namespace) -> None:
    """Run the worker on what isn't scored yet."""
    args.out.mkdir(parents=True, exist_ok=True)
    lengths = [args.window_tokens - 1] * args.windows
    job = {
        "checkpoint": str(args.checkpoint), "texts": str(args.texts), "field": args.field, "windows": args.windows,
        "window_tokens": args.window_tokens, "top_k": 128, "out": str(args.out),
        "whole_at": choose(lengths, args.whole_positions, 0).tolist(),
        "artifacts": artifacts([int(bits) for bits in args.bits.split(",")]),
    }  # fmt: skip
    file = args.out / "job.json"
    file.write_text(json.dumps(job))
    subprocess.run([args.interpreter, WORKER, file], check=True)


def table(folder: Path) -> Iterator[str]:
    """The rows of one folder of scored artifacts."""
    baseline = lists(folder / "baseline.npz")
    for file in sorted(folder.glob("w*.npz")):
        artifact, truth = lists(file), np.load(file)["kl"]
        sums = divergence.sums(baseline, artifact)
        found, bound = mean_divergence(sums), divergence_estimate.lower_bound(sums.windows)
        assert found.interval is not None
        error, held = repeated(baseline, artifact, truth)
        mean = truth.mean()
        yield (
            f"| {file.stem} | {mean:.5f} | {bound.value:.5f} | {found.value:.5f} | {found.interval.low:.5f} to "
            f"{found.interval.high:.5f} | {100 * (found.value / mean - 1):+.1f} % | {100 * error.mean():+.2f} % | "
            f"{100 * np.sqrt((error**2).mean()):.1f} % | {100 * np.abs(error).max():.1f} % | {held} of {DRAWS} |"
        )


def lists(file: Path) -> TopK:
    """What a server gives, of a scored model."""
    with np.load(file) as found:
        return TopK(found["ids"], found["logprobs"], found["window"], None, found["whole_at"], found["whole"])


def repeated(baseline: TopK, artifact: TopK, truth: np.ndarray) -> tuple[np.ndarray, int]:
    """Relative errors of the estimate over samples of positions; how many intervals hold the mean of all windows."""
    bound, mass, _, _, missing = divergence._by_position(baseline, artifact)
    flips, covariates = divergence.flips_by_position(baseline, artifact), np.stack([mass, mass * missing], axis=1)
    count, mean = len(baseline.whole_at), float(truth.mean())
    places = [np.flatnonzero(baseline.window == number) for number in np.unique(baseline.window)]
    errors, held = [], 0

    def sample(windows: np.ndarray, seed: int) -> tuple[WindowDivergence, ...]:
        """Sums over these windows, with positions of their own where a window comes twice."""
        own = [places[i] for i in windows]
        at, of = choose([len(x) for x in own], count, seed).astype(np.int32), np.concatenate(own)
        labels = np.repeat(np.arange(len(own), dtype=np.int32), [len(x) for x in own])
        return window_sums(labels, flips[of], bound[of], covariates[of], at, (truth - bound)[of][at])

    for seed in range(1, DRAWS + 1):
        rows = sample(np.arange(len(places)), seed)
        errors.append(float(divergence_estimate._regression(*divergence_estimate._columns(rows), axis=0)) / mean - 1)
        drawn = sample(np.random.default_rng(seed).integers(0, len(places), len(places)), seed)
        again = mean_divergence(Divergences(estimator=WHOLE, windows=drawn), seed=seed).interval
        held += again is not None and again.low <= mean <= again.high
    return np.array(errors), held


def errors(folder: Path, counts: list[int]) -> Iterator[str]:
    """The noise of the choice of positions, by their number."""
    baseline = lists(folder / "baseline.npz")
    lengths = np.bincount(baseline.window).tolist()
    for count in counts:
        found = []
        for file in sorted(folder.glob("w*.npz")):
            artifact, truth = lists(file), np.load(file)["kl"]
            bound, mass, _, _, missing = divergence._by_position(baseline, artifact)
            flips, covariates = divergence.flips_by_position(baseline, artifact), np.stack([mass, mass * missing], 1)
            missed = []
            for seed in range(1, SAMPLES + 1):
                at = choose(lengths, count, seed).astype(np.int32)
                rows = window_sums(baseline.window, flips, bound, covariates, at, (truth - bound)[at])
                value = float(divergence_estimate._regression(*divergence_estimate._columns(rows), axis=0))
                missed.append(value / truth.mean() - 1)
            each = np.array(missed)
            found.append((each.mean(), np.sqrt((each**2).mean()), np.quantile(np.abs(each), 0.95)))
        means, rms, most = (100 * np.array(column) for column in zip(*found, strict=True))
        yield (
            f"| {folder.name} | {len(found)} | {count} | {means.min():+.1f} to {means.max():+.1f} % | "
            f"{rms.min():.1f} to {rms.max():.1f} %, {np.median(rms):.1f} % | {most.min():.1f} to {most.max():.1f} % |"
        )


def main() -> None:
    """Score and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("texts", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--table", type=Path, nargs="+", default=[])
    parser.add_argument("--errors", help="numbers of positions, with commas")
    parser.add_argument("--interpreter")
    parser.add_argument("--field", default="passage")
    parser.add_argument("--windows", type=int, default=26)
    parser.add_argument("--window-tokens", type=int, default=128)
    parser.add_argument("--whole-positions", type=int, default=128)
    parser.add_argument("--bits", default="3,4,6,8")
    args = parser.parse_args()
    if not args.table:
        if not (args.checkpoint and args.texts and args.out and args.interpreter):
            parser.error("CHECKPOINT, TEXTS, OUT and --interpreter, or --table OUT")
        score(args)
    estimates.RESAMPLES = RESAMPLES
    if args.errors:
        print("| Model | Artifacts | Positions | Mean error | RMS, middle | 95 % of samples within |")
        print("| --- | --- | --- | --- | --- | --- |")
        for folder in args.table or [args.out]:
            for row in errors(folder, [int(count) for count in args.errors.split(",")]):
                print(row, flush=True)
        return
    for folder in args.table or [args.out]:
        print(f"\n{folder.name}\n")
        head = ("Rounded to", "KL", "Bound", "Estimate", "90 % interval", "Error", "Mean", "RMS", "Largest", "Held")
        print(f"| {' | '.join(head)} |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for row in table(folder):
            print(row, flush=True)


if __name__ == "__main__":
    sys.exit(main())
