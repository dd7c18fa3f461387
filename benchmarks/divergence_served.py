"""The estimate of the KL divergence as a real vLLM server gives it, against the one over the whole vocabulary.

    python benchmarks/divergence_served.py [RECIPE] --out FOLDER [--artifacts w4-64-asym,...] [--windows 26]
        [--window-tokens 128] [--whole-positions 64] [--device cuda] [--dtype float32] [--share K/N]
        [--part all|baseline|measure|table]

Artifacts are roundings of the model, each a dense checkpoint (divergence_served_worker.py), and the same worker
computes the divergence from the source over the whole vocabulary at every position, in plain transformers. Source and
artifacts each get a server of their own, from the recipe's serving manifest, and are measured as in a build; the
estimate is what a build would state. `--share` lets several processes measure a part of the artifacts each.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from planted_defects import ROOT, _server, _session, in_one_process

from evals.comparison.compare import of_sums
from evals.measure import divergence, perplexity
from evals.report.markdown import table
from evals.stats import divergence_estimate
from qpack.cli import options
from qpack.core.console import open_console
from qpack.core.records import Language
from qpack.pipeline import plan
from qpack.pipeline.context import Context
from qpack.pipeline.run import run
from qpack.pipeline.stages import hold_out
from qpack.pipeline.stages.catalog import until
from qpack.pipeline.stages.fetch import FETCHED
from qpack.pipeline.stages.hold_out import HELD_OUT
from qpack.pipeline.state import Build
from qpack.recipe import eval_requests, recipe_file

BASELINE = "baseline"
ARTIFACTS = "w3-64-asym,w4-64-asym,w4-row-sym,w6-64-asym,w8-64-sym,w8-row-asym"


def main() -> int:
    """Measure what isn't measured yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path, default=ROOT / "recipes" / "smollm2-135m-gram.yaml")
    parser.add_argument(
        "--artifacts", default=ARTIFACTS, help="bits, weights per scale, zero point or not; with commas"
    )
    parser.add_argument("--windows", type=int, default=26)
    parser.add_argument("--window-tokens", type=int, default=128)
    parser.add_argument("--whole-positions", type=int, default=64)
    parser.add_argument("--dtype", default="float32", help="what the server computes in")
    parser.add_argument("--device", default="cpu", help="of plain transformers")
    parser.add_argument("--share", default="1/1", metavar="K/N", help="every Nth artifact from the Kth on")
    parser.add_argument("--part", choices=("all", "baseline", "measure", "table"), default="all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="laid over the recipe")
    parser.add_argument("--out", type=Path, required=True)
    ask = parser.parse_args()
    text = "evaluate.perplexity"
    settings = [
        f"{text}.windows={ask.windows}", f"{text}.window_tokens={ask.window_tokens}", f"serve.dtype={ask.dtype}",
        f"{text}.whole_positions={ask.whole_positions}", *ask.set,
    ]  # fmt: skip
    loaded, store = recipe_file.load(ask.recipe, settings), options.store()
    with open_console() as console:
        context = Context(store, options.registry_folder(), console)
        build = run(Build(plan.make(loaded, store, thorough=True), context), until(hold_out.STAGE))
    k, n = (int(number) for number in ask.share.split("/"))
    names = ask.artifacts.split(",")
    if ask.part in ("all", "baseline"):
        measure(build, [BASELINE], ask)
    if ask.part in ("all", "measure"):
        measure(build, names[k - 1 :: n], ask)
    if ask.part in ("all", "table"):
        print("\n".join(table(HEAD, list(rows(names, ask)))))
    return 0


def measure(build: Build, names: list[str], ask: argparse.Namespace) -> None:
    """A server each, and the divergence over the whole vocabulary."""
    out = ask.out.resolve()
    source, windows = build.require(FETCHED).folder / "checkpoint", build.require(HELD_OUT).folder / "tokens.jsonl"
    todo = [name for name in names if name != BASELINE and not (out / name / "whole.json").exists()]
    if todo:
        job = {
            "source": str(source),
            "windows": str(windows),
            "device": ask.device,
            "out": str(out),
            "artifacts": todo,
        }
        in_one_process(build, "transformers", "divergence_served_worker", job, out)
    spec = eval_requests.specs(build.plan.recipe).language
    for name in names:
        folder = out / name
        if (folder / "language.json").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = source if name == BASELINE else folder / "checkpoint"
        with _server(build, checkpoint, folder / "server.log") as up:
            found = perplexity.measure(_session(build, up, checkpoint, folder), spec)
        (folder / "language.json").write_text(found.model_dump_json())
        print(f"{name} is measured", file=sys.stderr, flush=True)


HEAD = ("Rounded to", "KL", "Bound", "Estimate", "90 % interval", "Error", "Holds", "Perplexity", "By vLLM", "Flips",
        "By vLLM")  # fmt: skip


def rows(names: list[str], ask: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """What a build would state, beside the truth."""
    before = divergence.load(ask.out / BASELINE / "logprobs.npz")
    errors, held = [], 0
    for name in names:
        folder = ask.out / name
        if not (folder / "language.json").exists():
            continue
        truth = json.loads((folder / "whole.json").read_text())
        language = Language.model_validate_json((folder / "language.json").read_text())
        sums = divergence.sums(before, divergence.load(folder / "logprobs.npz"))
        kl, flips = of_sums(sums, language.top_k)
        bound = divergence_estimate.lower_bound(sums.windows)
        assert kl.interval is not None
        holds = kl.interval.low <= truth["kl"] <= kl.interval.high
        errors.append(kl.value / truth["kl"] - 1)
        held += holds
        yield (
            name, f"{truth['kl']:.5f}", f"{bound.value:.5f}", f"{kl.value:.5f}",
            f"{kl.interval.low:.5f} to {kl.interval.high:.5f}", f"{100 * errors[-1]:+.1f} %", "yes" if holds else "no",
            f"{truth['perplexity']:.2f}", f"{perplexity_of(language):.2f}", f"{100 * truth['flips']:.1f} %",
            f"{100 * flips.value:.1f} %",
        )  # fmt: skip
    if errors:
        largest = max(errors, key=abs)
        print(f"{held} of {len(errors)} intervals hold; the largest error is {100 * largest:+.1f} %.\n")


def perplexity_of(language: Language) -> float:
    """Over all windows."""
    return math.exp(sum(w.nll for w in language.windows) / sum(w.tokens for w in language.windows))


if __name__ == "__main__":
    sys.exit(main())
