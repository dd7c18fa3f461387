"""How often the gates of a release would be decided: its evidence drawn again, item by item and window by window.

    python benchmarks/decided_gates.py release.json [--draws 200] [--items 100] [--windows 20]

`release.json` is that of `qpack pull`, or the output of `qpack show NAME --json`. Each draw takes as many items of a
task and windows of text as the release has, or `--items` a task and `--windows`, with replacement; both models get the
same ones. The code of a build compares and judges them. So a draw stands for the same recipe with other items of the
same tasks and other text, and the share of draws with an outcome says how far the verdict rests on which were drawn.
What isn't drawn again: the artifact, the load (failed requests) and the canary.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from evals.comparison import compare  # noqa: E402
from evals.comparison.verdicts import verdict  # noqa: E402
from evals.report.markdown import table  # noqa: E402
from qpack.core.records import Estimate, Evidence, Release, TaskScore, Verdict  # noqa: E402

ALWAYS_ON = ("canary", "sanity")
_T = TypeVar("_T")


def read(path: Path) -> Release:
    """The release of a file; see above."""
    found = json.loads(path.read_text())
    return Release.model_validate(found.get("release", found))


def figure(estimate: Estimate) -> str:
    """The value and its interval."""
    held = estimate.interval
    return f"{estimate.value:.4f}" + (f" [{held.low:.4f}, {held.high:.4f}]" if held else "")


def picked(things: Sequence[_T], numbers: Sequence[int]) -> tuple[_T, ...]:
    """The things at `numbers`."""
    return tuple(things[number] for number in numbers)


def redrawn(evidence: Evidence, items: dict[str, list[int]], windows: list[int], whole: int) -> Evidence:
    """The evidence with those items of each task (by number) and those windows."""

    def drawn(task: TaskScore) -> TaskScore:
        # An item that is drawn twice is two items.
        named = enumerate(picked(task.samples, items[task.task]))
        samples = tuple(sample.model_copy(update={"id": f"{at}: {sample.id}"}) for at, sample in named)
        return task.model_copy(update={"samples": samples})

    tasks = tuple(map(drawn, evidence.accuracy.tasks))
    text = {"windows": picked(evidence.language.windows, windows), "whole_positions": whole}
    return evidence.model_copy(
        update={
            "accuracy": evidence.accuracy.model_copy(update={"tasks": tasks}),
            "language": evidence.language.model_copy(update=text),
        }
    )


def draw(release: Release, items: int | None, windows: int | None, seed: int) -> Verdict:
    """The verdict on one draw."""
    chance = random.Random(seed)
    tasks = {task.task: len(task.samples) for task in release.baseline.accuracy.tasks}
    chosen = {name: chance.choices(range(size), k=items or size) for name, size in tasks.items()}
    text = len(release.baseline.language.windows)
    of_text = chance.choices(range(text), k=windows or text)
    sums = release.comparison.divergences
    if sums is None:
        raise SystemExit("a release of before qpack 0.2: it doesn't hold the divergence window by window")
    sums = sums.model_copy(update={"windows": picked(sums.windows, of_text)})
    whole = sum(window.sampled for window in sums.windows)
    before, after = (redrawn(evidence, chosen, of_text, whole) for evidence in (release.baseline, release.artifact))
    again = compare.of_sums(sums, before.language.top_k, seed=seed)
    comparison = compare.of_evidence(before, after, again, interleaved=release.interleaved, seed=seed)
    comparison = comparison.model_copy(
        update={"divergences": sums, "chance_flips": release.comparison.chance_flips, "tail": release.comparison.tail}
    )
    bounds = {gate.gate.partition("[")[0]: gate.bound for gate in release.verdict.gates}
    return verdict(comparison, before, after, {name: bounds[name] for name in bounds if name not in ALWAYS_ON})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--items", type=int, help="per task (default: as many as the release has)")
    parser.add_argument("--windows", type=int, help="default: as many as the release has")
    options = parser.parse_args()
    release = read(options.release)
    counts: dict[str, Counter[str]] = {}
    for seed in range(options.draws):
        found = draw(release, options.items, options.windows, seed)
        for name, outcome in [*((gate.gate, gate.outcome) for gate in found.gates), ("all of them", found.outcome)]:
            counts.setdefault(name, Counter())[outcome] += 1
    held = {gate.gate: gate for gate in release.verdict.gates}
    rows = []
    for name, outcomes in counts.items():
        bound, shown = (f"{held[name].bound:g}", figure(held[name].estimate)) if name in held else ("", "")
        rows.append([name, bound, shown, *(str(outcomes[outcome]) for outcome in ("pass", "fail", "undecided"))])
    print(*table(["Gate", "Bound", "In the release", "Pass", "Fail", "Undecided"], rows), sep="\n")


if __name__ == "__main__":
    main()
