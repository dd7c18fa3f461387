"""Planted defects: which gates catch a damaged artifact, at how many samples, and how often a good one is refused.

    python benchmarks/planted_defects.py [RECIPE] [--items N] [--windows N] [--seeds N] [--only NAME,NAME] --out FOLDER

Builds the recipe's artifact, damages it in known ways (damage_checkpoint.py), and puts each through a real vLLM server
once: first questions, held-out text, tasks. The control is another quantization of equal quality: the same recipe with
another calibration seed. Sample counts and seeds are then drawn (with replacement) from those per-sample results,
without a server. Gates are set from the undamaged artifact's own evidence, as a team would that guards a release it is
content with.

What was measured is kept in FOLDER, so a run that was stopped goes on; the tables go to stdout as Markdown.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evals import accuracy, canary, compare, divergence, perplexity, serving, stats
from evals.gates import GATES, Kind, decide, figure
from evals.markdown import table
from evals.multiplicity import LOGARITHMIC, holm, p_beyond
from evals.sequential import follow
from qpack import describe, plan, recipe
from qpack.build import STAGES, fetch, hold_out, run
from qpack.build import quantize as quantize_stage
from qpack.commands import options
from qpack.console import open_console
from qpack.errors import EvaluateError
from qpack.results import Accuracy, Canary, Estimate, Language
from qpack.work import Build, need
from registry import serving_manifest

ROOT = Path(__file__).parent.parent
DAMAGES = ("scales", "rope", "template", "flips")
COUNTS = (50, 100, 200, 400, 800)
BOUND = 0.03


@dataclass(frozen=True)
class Evidence:
    """What one server said of one model; `logprobs` is the file of its top-k log-probabilities."""

    accuracy: Accuracy
    language: Language
    canary: Canary
    logprobs: Path


def main() -> int:
    """Measure what isn't measured yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", type=Path, default=ROOT / "recipes" / "smollm2-135m-gptq.yaml")
    parser.add_argument("--items", type=int, help="items of each task (default: the recipe's)")
    parser.add_argument("--windows", type=int, help="windows of held-out text (default: the recipe's)")
    parser.add_argument("--seeds", type=int, default=20, help="draws for each sample count")
    parser.add_argument("--only", help="subjects to measure, with commas: control, " + ", ".join(DAMAGES))
    parser.add_argument("--out", type=Path, required=True)
    ask = parser.parse_args()
    wanted = ask.only.split(",") if ask.only else ["control", *DAMAGES]
    good = built(ask, [])
    subjects = {
        "baseline": need(good.fetched).folder / "checkpoint",
        "good": need(good.quantized).folder / "checkpoint",
    }
    for name in wanted:
        if name == "control":
            other = built(ask, ["calibration.seed=1"])
            subjects[name] = need(other.quantized).folder / "checkpoint"
        else:
            subjects[name] = damaged(good, name, ask.out)
    found, refused = {}, {}
    for name, checkpoint in subjects.items():
        try:
            found[name] = measured(good, name, checkpoint, ask.out / "evidence" / name)
        except EvaluateError as error:
            refused[name] = error.what
    print("\n".join(tables(found, refused, ask.seeds)))
    return 0


def built(ask: argparse.Namespace, more: list[str]) -> Build:
    """The recipe's build as far as the quantized checkpoint."""
    settings = list(more)
    if ask.windows:
        settings.append(f"evaluate.perplexity.windows={ask.windows}")
    loaded = recipe.load(ask.recipe, settings)
    if ask.items:
        tasks = range(len(loaded.recipe.evaluate.tasks))
        loaded = recipe.load(ask.recipe, [*settings, *(f"evaluate.tasks.{i}.samples={ask.items}" for i in tasks)])
    store = options.store()
    with open_console() as console:
        build = Build(plan.make(loaded, store, thorough=True), store, console, options.registry_folder())
        until = STAGES[: STAGES.index(quantize_stage) + 1]
        assert until[:2] == (fetch, hold_out)
        return run(build, until)


def damaged(build: Build, kind: str, out: Path) -> Path:
    """The good artifact with one defect planted, made once."""
    target = out / "checkpoints" / kind
    if not target.exists():
        part = target.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        python = build.environment("transformers").python
        source = need(build.quantized).folder / "checkpoint"
        script = Path(__file__).parent / "damage_checkpoint.py"
        subprocess.run([python, script, source, part, kind], check=True, stdout=sys.stderr)
        part.rename(target)
    return target


def measured(build: Build, name: str, checkpoint: Path, out: Path) -> Evidence:
    """First questions, held-out text and tasks of one model, from one server; each part is kept in `out`."""
    if not all((out / f"{part}.json").exists() for part in ("canary", "language", "accuracy")):
        out.mkdir(parents=True, exist_ok=True)
        _measure(build, name, checkpoint, out)
    return Evidence(
        Accuracy.model_validate_json((out / "accuracy.json").read_text()),
        Language.model_validate_json((out / "language.json").read_text()),
        Canary.model_validate_json((out / "canary.json").read_text()),
        out / "logprobs.npz",
    )


def _measure(build: Build, name: str, checkpoint: Path, out: Path) -> None:
    r, manifest = build.plan.recipe, describe.serving(build, "subject", "")
    vllm, lm_eval = build.environment("vllm"), build.environment("lm-eval")

    def arguments(host: str, port: int) -> list[str]:
        return serving_manifest.vllm_arguments(manifest, checkpoint, host=host, port=port)

    def keep(part: str, measure: Callable[[], Canary | Language | Accuracy]) -> None:
        if not (out / f"{part}.json").exists():
            (out / f"{part}.json").write_text(measure().model_dump_json())

    command = serving.Command(vllm.python, arguments, {**vllm.variables, **manifest.environment})
    log = (out / "server.log").resolve()
    print(f"measuring {name}", file=sys.stderr, flush=True)
    start = r.limits.server_start_minutes * 60
    with serving.running(command, model="subject", log=log, timeout=start, progress=build.console.progress) as up:
        url, model, top_k = up.base_url, up.model, r.evaluate.top_k
        windows = need(build.held_out).folder / "tokens.jsonl"
        chat = canary.has_chat_template(checkpoint)
        keep("canary", lambda: canary.measure(base_url=url, model=model, chat=chat))
        keep("language", lambda: perplexity.measure(base_url=url, model=model, windows=windows, out=out, top_k=top_k))
        keep(
            "accuracy",
            lambda: accuracy.measure(
                lm_eval,
                base_url=url,
                model=model,
                tokenizer=checkpoint,
                max_length=r.serve.max_model_len,
                tasks=plan.tasks(r),
                seed=r.evaluate.seed,
                out=out / "lm-eval",
                log=log.with_suffix(".lm-eval.log"),
                timeout=build.limit,
            ),
        )


@dataclass(frozen=True)
class Paired:
    """Baseline and one subject, item by item and window by window, ready to be drawn from."""

    tasks: tuple[tuple[stats.Floats, stats.Floats], ...]
    nll: tuple[stats.Floats, stats.Floats]
    tokens: stats.Floats
    kl: stats.Floats
    flips: stats.Floats
    window: stats.Floats

    @classmethod
    def of(cls, baseline: Evidence, subject: Evidence) -> Paired:
        """All that there is."""
        b, a = divergence.load(baseline.logprobs), divergence.load(subject.logprobs)
        return cls(
            tuple(
                (np.array([s.score for s in x.samples]), np.array([s.score for s in y.samples]))
                for x, y in zip(baseline.accuracy.tasks, subject.accuracy.tasks, strict=True)
            ),
            tuple(np.array([w.nll for w in e.language.windows]) for e in (baseline, subject)),  # type: ignore[arg-type]
            np.array([float(w.tokens) for w in baseline.language.windows]),
            divergence.kl_by_position(b, a),
            divergence.flips_by_position(b, a).astype(np.float64),
            b.window.astype(np.float64),
        )

    def draw(self, share: float, rng: np.random.Generator) -> Paired:
        """So many items of each task and windows, drawn with replacement: what was measured stands for the population,
        so that draws differ at every count.
        """

        def some(size: int) -> np.ndarray:
            return rng.integers(size, size=max(2, math.ceil(share * size)))

        items = [some(len(b)) for b, _ in self.tasks]
        windows = some(len(self.tokens))
        places = [np.flatnonzero(self.window == window) for window in windows]
        at = np.concatenate(places)
        return Paired(
            tuple((b[i], a[i]) for (b, a), i in zip(self.tasks, items, strict=True)),
            (self.nll[0][windows], self.nll[1][windows]),
            self.tokens[windows],
            self.kl[at],
            self.flips[at],
            np.repeat(np.arange(len(windows), dtype=np.float64), [len(place) for place in places]),
        )

    def figures(self, seed: int) -> dict[str, Estimate]:
        """The figures that gates are held against."""
        window = self.window.astype(np.int64)
        return {
            "accuracy_drop": stats.paired_drop(self.tasks, seed=seed),
            "perplexity_ratio": stats.perplexity_ratio(*self.nll, self.tokens, seed=seed),
            "kl_divergence": stats.mean_by_window(self.kl, window, seed=seed),
            "flip_rate": stats.rate_by_window(self.flips > 0, window, seed=seed),
        }


def tables(found: dict[str, Evidence], refused: dict[str, str], seeds: int) -> Iterator[str]:
    """What was caught, by which gate, at which number of samples."""
    pairs = {name: Paired.of(found["baseline"], evidence) for name, evidence in found.items() if name != "baseline"}
    good = pairs["good"].figures(0)
    bounds = {
        "accuracy_drop": good["accuracy_drop"].value + BOUND,
        "perplexity_ratio": good["perplexity_ratio"].value * 1.05,
        "kl_divergence": good["kl_divergence"].value * 1.25,
        "flip_rate": good["flip_rate"].value * 1.1,
    }
    items = sum(len(b) for b, _ in pairs["good"].tasks)
    windows = len(pairs["good"].tokens)
    yield f"{items:,} items and {windows} windows of each subject; {seeds} draws for each sample count."
    yield "Gates from the undamaged artifact: " + ", ".join(f"{g} <= {figure(b)}" for g, b in bounds.items()) + ".\n"
    yield from table(("Subject", *bounds, "first questions"), _whole(pairs, found, refused))
    yield "\nShare of draws in which a gate fails (Holm over the gates), by items drawn:\n"
    counts = [n for n in COUNTS if n < items] + [items]
    rows = [
        (name, f"{count:,}", *_shares(pair, count / items, bounds, seeds))
        for name, pair in pairs.items()
        for count in counts
    ]
    yield from table(("Subject", "Items", *bounds, "any", "all pass"), rows)
    yield "\nSequential looks at a quarter, half, three quarters and all of the items (accuracy alone):\n"
    yield from table(
        ("Subject", "Fail", "Pass", "Undecided", "Items used, mean"), list(_followed(pairs, bounds, seeds))
    )


def _whole(pairs: dict[str, Paired], found: dict[str, Evidence], refused: dict[str, str]) -> Iterator[tuple[str, ...]]:
    for name, pair in pairs.items():
        told = "as the baseline's"
        if problem := compare.asked_otherwise(found["baseline"].canary, found[name].canary):
            told = f"REFUSED: {problem[0].what}"
        yield (name, *(_span(e) for e in pair.figures(0).values()), told)
    for name, why in refused.items():
        yield (name, "", "", "", "", f"REFUSED: {why}")


def _shares(pair: Paired, share: float, bounds: dict[str, float], seeds: int) -> list[str]:
    failed = dict.fromkeys((*bounds, "any", "all pass"), 0)
    for seed in range(seeds):
        figures = pair.draw(share, np.random.default_rng(seed)).figures(seed)
        outcomes = dict(zip(figures, _judged(figures, bounds), strict=True))
        for gate, outcome in outcomes.items():
            failed[gate] += outcome == "fail"
        failed["any"] += "fail" in outcomes.values()
        failed["all pass"] += set(outcomes.values()) == {"pass"}
    return [f"{100 * count / seeds:.0f} %" for count in failed.values()]


def _judged(figures: dict[str, Estimate], bounds: dict[str, float]) -> list[str]:
    """Each gate's answer, a failure only if it holds among all of them: the rule of `evals.verdicts`."""
    kinds: dict[str, Kind] = {gate: GATES[gate].kind for gate in figures}
    p = [p_beyond(e, kinds[g], bounds[g], logarithmic=g in LOGARITHMIC) for g, e in figures.items()]
    adjusted = iter(holm([x for x in p if x is not None]))
    outcomes: list[str] = []
    for (gate, estimate), raw in zip(figures.items(), p, strict=True):
        outcome = decide(estimate, kinds[gate], bounds[gate])[0]
        sure = raw is None or next(adjusted) <= (1 - stats.CONFIDENCE) / 2
        outcomes.append(outcome if outcome != "fail" or sure else "undecided")
    return outcomes


def _followed(pairs: dict[str, Paired], bounds: dict[str, float], seeds: int) -> Iterator[tuple[str, ...]]:
    for name, pair in pairs.items():
        ends = [
            follow(pair.draw(1.0, np.random.default_rng(seed)).tasks, bounds["accuracy_drop"]) for seed in range(seeds)
        ]
        shares = [sum(end.outcome == o for end in ends) / seeds for o in ("fail", "pass", "undecided")]
        used = sum(end.samples for end in ends) / seeds
        yield (name, *(f"{100 * share:.0f} %" for share in shares), f"{used:,.0f}")


def _span(estimate: Estimate) -> str:
    interval = estimate.interval
    return figure(estimate.value) + (f" [{figure(interval.low)}, {figure(interval.high)}]" if interval else "")


if __name__ == "__main__":
    sys.exit(main())
