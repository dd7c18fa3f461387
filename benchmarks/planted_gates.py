"""Planted defects again, in many sizes, with today's gates: which gate holds back which damage, at which size.

    python benchmarks/planted_gates.py [RECIPE] --out FOLDER [--learn 20] [--controls 60] [--items N] [--windows N]
        [--device cuda] [--part all|quantize|score|table] [--share K/N] [--set KEY=VALUE ...]

The recipe's artifact (quantized by gram) is damaged in known ways (damage_checkpoint.py). The controls are the same
recipe with other calibration seeds, each an artifact of its own. All are scored in plain transformers in one process
(planted_worker.py), in what a server gives: lists of the most probable tokens, whole distributions at a sample of
positions, log-likelihoods of choices. So kernels play no part. `qpack doctor --against SOURCE --whole` reads each.

Two kinds of bounds, both set before anything was measured. *Content*: those of a team that is content with the
undamaged artifact: its figures, and 5 % of perplexity ratio, 25 % of KL divergence, 10 % of flip rate, 0.03 of recovery
beyond them. *Spread*: those of a team that quantized `--learn` times with other seeds: mean and four standard
deviations of the bad ends of the figures' intervals, so that another seed passes. A false alarm is a control that a
gate fails (content), or that doesn't pass (spread).

`--share` lets several processes quantize and score a part of the artifacts each; `--part table` is quick. What was
measured is kept in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from planted_defects import ROOT, built, damaged, doctors, in_one_process, quantized_again
from planted_tables import judged

from evals.gates import sanity
from evals.gates.gates import GATES, decide, figure
from evals.measure import divergence, perplexity, suite
from evals.report.markdown import table
from evals.stats import divergence_estimate, estimates, recovery
from evals.tasks.utils import read_docs
from qpack.core.findings import Divergences
from qpack.core.records import Estimate, Language, Window
from qpack.pipeline.stages.fetch import FETCHED
from qpack.pipeline.stages.hold_out import HELD_OUT
from qpack.pipeline.stages.quantize import QUANTIZED
from qpack.pipeline.state import Build
from qpack.recipe import eval_requests

DEFECTS = (
    *(f"scales:{x}" for x in (1.02, 1.05, 1.1, 1.2, 1.5)),
    *(f"down:{x}" for x in (1.1, 1.5, 2)),
    *(f"zeros:{x}" for x in (0.1, 0.5, 1)),
    *(f"rope:{x}" for x in (1.5, 3, 10)),
    *(f"flips:{x}" for x in (0.0001, 0.001, 0.005, 0.02)),
    *(f"norm:{x}" for x in (0.9, 0.7, 0.5)),
    *(f"lost:{x}" for x in (0.02, 0.125, 0.5)),
    "swapped:1",
)
PROMPTS = {
    "qpack_siqa": "Q: {passage} {question}\nA:",
    "qpack_piqa": "Question: {question}\nAnswer:",
    "qpack_openbookqa": "{question}",
}
"""As in the task files."""
GAPS = {"perplexity_ratio": 1.05, "kl_divergence": 1.25, "flip_rate": 1.1}
ACCURACY_GAP, SPREADS = 0.03, 4.0


def main() -> int:
    """Do the part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path, default=ROOT / "recipes" / "smollm2-135m-gram.yaml")
    parser.add_argument("--learn", type=int, default=20, help="seeds that set the bounds of the second kind")
    parser.add_argument("--controls", type=int, default=60, help="seeds that are judged")
    parser.add_argument("--items", type=int, default=None, help="items of each task (default: the recipe's)")
    parser.add_argument("--windows", type=int, help="windows of held-out text (default: the recipe's)")
    parser.add_argument("--only", help="damages, with commas (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--part", choices=("all", "quantize", "score", "table"), default="all")
    parser.add_argument("--share", default="1/1", metavar="K/N", help="every Nth artifact from the Kth on")
    parser.add_argument("--ask-unpacked", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="laid over the recipe")
    parser.add_argument("--out", type=Path, required=True)
    ask = parser.parse_args()
    items, ask.items = ask.items, None
    good = built(ask)
    ask.items = items
    k, n = (int(number) for number in ask.share.split("/"))
    seeds = range(1, ask.learn + ask.controls + 1)
    if ask.part in ("all", "quantize"):
        quantized_again(good, list(seeds)[k - 1 :: n], ask.out)
    if ask.part in ("all", "score"):
        score(good, dict(list(subjects(good, seeds, ask).items())[k - 1 :: n]), ask)
    if ask.part in ("all", "table"):
        print("\n".join(report(ask)))
    return 0


def damages(ask: argparse.Namespace) -> tuple[str, ...]:
    """The damages that are asked for."""
    return tuple(ask.only.split(",")) if ask.only else DEFECTS


def subjects(good: Build, seeds: range, ask: argparse.Namespace) -> dict[str, Path]:
    """Every artifact by name."""
    out = ask.out.resolve()
    found = {"good": good.require(QUANTIZED).folder / "checkpoint"}
    found |= {f"seed-{seed}": out / "controls" / str(seed) / "checkpoint" for seed in seeds}
    return found | {name: out / "checkpoints" / name for name in damages(ask)}


def score(good: Build, some: Mapping[str, Path], ask: argparse.Namespace) -> None:
    """Damage, score and read the artifacts that aren't yet; one JSON file each."""
    source, evidence = good.require(FETCHED).folder / "checkpoint", ask.out / "evidence"
    evidence.mkdir(parents=True, exist_ok=True)
    todo = {name: path for name, path in some.items() if not (evidence / f"{name}.json").exists()}
    for name in todo:
        if name in damages(ask):
            damaged(good, name, ask.out)
    spec, windows = eval_requests.specs(good.plan.recipe).language, good.require(HELD_OUT).folder / "tokens.jsonl"
    rows = perplexity.read_windows(windows)
    at = divergence_estimate.choose([len(row) - 1 for row in rows], spec.whole_positions, 0).tolist()
    asked = items_of(good, ask.items)
    scored = ask.out / "scored"
    base = scored / f"baseline-{ask.share.replace('/', '-')}.npz"
    files = {"baseline": (source, base), **{name: (path, scored / f"{name}.npz") for name, path in todo.items()}}
    job = {
        "source": str(source), "windows": str(windows), "top_k": spec.top_k, "whole_at": at, "items": asked,
        "device": ask.device, "subjects": [[str(path), str(file.resolve())] for path, file in files.values()],
    }  # fmt: skip
    in_one_process(good, "transformers", "planted_worker", job, ask.out)
    before = kept(base, len(rows))
    (evidence / "baseline.json").write_text(json.dumps({"nll": before.nll, "right": rights(base, asked)}))
    for name, (_, file) in list(files.items())[1:]:
        after = kept(file, len(rows))
        found = {
            "sums": divergence.sums(before.top, after.top).model_dump(),
            "chance_flips": divergence.chance_flips(before.top, after.top),
            "nll": after.nll, "tokens": [len(row) - 1 for row in rows], "right": rights(file, asked),
            "vocabulary": int(before.top.whole.shape[1]),
        }  # fmt: skip
        (evidence / f"{name}.json").write_text(json.dumps(found))
        file.unlink()
    # Last, for it takes longest where many run on few cores; what it has said is kept one by one.
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: doctors(some[name], source, ask.out / "doctor" / name), some))


@dataclass(frozen=True)
class Kept:
    """A scored file: what a server gives, and each window's negative log-likelihood."""

    top: divergence.TopK
    nll: list[float]


def kept(file: Path, windows: int) -> Kept:
    """Read a scored file."""
    with np.load(file) as arrays:
        nll = np.bincount(arrays["window"], weights=arrays["nll"].astype(np.float64), minlength=windows)
    return Kept(divergence.load(file), nll.tolist())


def items_of(good: Build, count: int | None) -> list[dict[str, Any]]:
    """The recipe's tasks of choices; no items with a count of 0."""
    found = []
    for task in eval_requests.specs(good.plan.recipe).tasks.tasks:
        known, limit = suite.TASKS[task.name], task.limit if count is None else count
        docs, _ = read_docs(suite.data_root() / known.file)
        for doc in random.Random(f"0:{task.name}").sample(docs, min(limit or len(docs), len(docs))):
            prompt = PROMPTS[task.name].format(**doc)
            found.append({"task": task.name, "prompt": prompt, "choices": doc["choices"], "gold": doc["gold"]})
    return found


def rights(file: Path, items: list[dict[str, Any]]) -> dict[str, list[float]]:
    """{task: 1 for each right answer}: the likeliest choice, per character where the task says acc_norm."""
    with np.load(file) as arrays:
        scores = arrays["scores"]
    found: dict[str, list[float]] = {}
    for item, every in zip(items, scores, strict=True):
        own = every[: len(item["choices"])]
        likely = own[:, 0] / (own[:, 1] if suite.TASKS[item["task"]].metric == "acc_norm" else 1)
        found.setdefault(item["task"], []).append(float(np.argmax(likely) == item["gold"]))
    return found


def figures(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Estimate]:
    """The figures that gates are held against."""
    sums = Divergences.model_validate(found["sums"])
    nll = (np.array(before["nll"]), np.array(found["nll"]), np.array(found["tokens"], dtype=np.float64))
    pairs = [(np.array(before["right"][task]), np.array(found["right"][task])) for task in before["right"]]
    text = {
        "perplexity_ratio": estimates.perplexity_ratio(*nll),
        "kl_divergence": divergence_estimate.mean_divergence(sums),
        "flip_rate": divergence_estimate.flip_rate(sums.windows),
    }
    return text | ({"recovery": recovery.recovery(pairs)} if pairs else {})


def always(found: dict[str, Any], own: Mapping[str, Estimate]) -> str:
    """The gates that no recipe sets, of those that need nothing but text."""
    windows = tuple(Window(nll=nll, tokens=n) for nll, n in zip(found["nll"], found["tokens"], strict=True))
    language = Language(top_k=128, windows=windows, text_digest="0" * 64, vocabulary=found["vocabulary"])
    flips: Any = SimpleNamespace(flip_rate=own["flip_rate"], chance_flips=found["chance_flips"])
    results = (sanity._artifact_text(language), sanity._flips(flips))
    return ", ".join(result.gate for result in results if result is not None)


def report(ask: argparse.Namespace) -> Iterator[str]:
    """The tables."""
    folder = ask.out / "evidence"
    before = json.loads((folder / "baseline.json").read_text())
    names = ["good", *(f"seed-{n}" for n in range(1, ask.learn + ask.controls + 1)), *damages(ask)]
    held = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    for name, found in held.items():
        file = ask.out / "doctor" / name
        found["doctor"] = file.read_text() if file.exists() else "not asked"
    own = {name: figures(before, found) for name, found in held.items()}
    seeds = [name for name in names if name.startswith("seed-")]
    learnt, controls = seeds[: ask.learn], seeds[ask.learn :]
    content = {gate: beyond(gate, found.value) for gate, found in own["good"].items()}
    spread = {gate: reach(gate, [own[name][gate] for name in learnt]) for gate in content}
    one = held["good"]
    yield (
        f"Each artifact: {len(one['tokens'])} windows, {sum(one['tokens']):,} predicted tokens, "
        f"{sum(map(len, before['right'].values())):,} items of {len(before['right'])} tasks. Bounds:\n"
    )
    rows = [
        (gate, figure(own["good"][gate].value), figure(content[gate]), figure(spread[gate]),
         f"{figure(min(own[n][gate].value for n in seeds))} to {figure(max(own[n][gate].value for n in seeds))}")
        for gate in content
    ]  # fmt: skip
    yield from table(("Gate", "Undamaged", "Content", "Spread", f"All {len(seeds)} seeds"), rows)
    yield f"\n{len(controls)} controls:\n"
    yield from table(("Gate", "Fails, content", "Doesn't pass, spread"), list(alarms(own, controls, content, spread)))
    asked = [held[name]["doctor"] for name in ("good", *seeds) if held[name]["doctor"] != "not asked"]
    complaints = sum(said != "nothing" for said in asked)
    yield f"\nThe doctor names something in {complaints} of {len(asked)} undamaged artifacts.\n"
    yield from table(
        ("Damage", *(f"{gate}" for gate in content), "Content", "Spread", "Always on", "Doctor"),
        [row(name, own[name], held[name], content, spread) for name in ("good", *damages(ask))],
    )


def beyond(gate: str, value: float) -> float:
    """A bound of the first kind."""
    return value - ACCURACY_GAP if gate == "recovery" else value * GAPS[gate]


def reach(gate: str, found: list[Estimate]) -> float:
    """A bound of the second kind."""
    sign = 1 if GATES[gate].kind == "max" else -1
    ends = np.array([e.value if e.interval is None else (e.interval.high, e.interval.low)[sign < 0] for e in found])
    return float(ends.mean() + sign * SPREADS * ends.std(ddof=1))


def alarms(
    own: Mapping[str, Mapping[str, Estimate]],
    controls: list[str],
    content: Mapping[str, float],
    spread: Mapping[str, float],
) -> Iterator[tuple[str, str, str]]:
    """False alarms, gate by gate and of all together."""
    failed = [{g for g, o in judged(own[n], content).items() if o == "fail"} for n in controls]
    missed = [held_back(own[n], spread) for n in controls]
    for gate in (*content, "any"):
        counts = [sum(bool(some) if gate == "any" else gate in some for some in each) for each in (failed, missed)]
        yield gate, *(f"{count} ({span(count, len(controls))})" for count in counts)


def span(count: int, of: int) -> str:
    """The 90 % interval of a rate, in words."""
    low, high = estimates.clopper_pearson(count, of, 0.05)
    return f"{100 * low:.1f} % to {100 * high:.1f} %"


def held_back(own: Mapping[str, Estimate], bounds: Mapping[str, float]) -> set[str]:
    """The gates that don't pass."""
    return {gate for gate, bound in bounds.items() if decide(own[gate], GATES[gate].kind, bound)[0] != "pass"}


def row(
    name: str,
    own: Mapping[str, Estimate],
    held: dict[str, Any],
    content: Mapping[str, float],
    spread: Mapping[str, float],
) -> tuple[str, ...]:
    """A damage, its figures, and who says what."""
    outcomes = judged(own, content)
    said = [f"{g} {o}" for g, o in outcomes.items() if o == "fail"] or [
        f"{g} undecided" for g, o in outcomes.items() if o == "undecided"
    ]
    missed = held_back(own, spread)
    return (
        name,
        *(figure(own[gate].value) for gate in content),
        ", ".join(said) or "pass",
        ", ".join(gate for gate in content if gate in missed) or "pass",
        always(held, own) or "pass",
        held["doctor"],
    )


if __name__ == "__main__":
    sys.exit(main())
