"""Several releases side by side: comparable figures, the Pareto front, and different inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.comparison.comparison_keys import keys, reasons
from evals.stats import estimates, pareto
from qpack.core import side_by_side
from qpack.core.errors import EvaluateError
from qpack.core.problems import Code, Location, Problem
from qpack.core.records import Estimate, Evidence, GenerationDifference, Outcome, Release
from qpack.core.side_by_side import Throughput, server_bytes

_ASKED_DIFFERENTLY = Code("asked-differently", "Two releases were asked different tasks, or in different ways.")


@dataclass(frozen=True)
class ReleaseRow:
    """One release's figures. None where they aren't comparable with the others'.

    `recovery` is of its own baseline's mean score (None in releases from before it was kept). `accuracy` is the mean
    over tasks; `against_first` is the first release's accuracy minus this one's on the same items (positive is worse
    than the first). `tokens_per_second` is at the largest concurrency, `speed_ratio` is that over
    `baseline_tokens_per_second`, and `in_turn` says whether the two were loaded in turn. `generated` has the answers
    over chat, beside the release's own baseline.
    """

    name: str
    outcome: Outcome
    recovery: Estimate | None
    accuracy: float
    accuracy_drop: Estimate
    against_first: Estimate | None
    perplexity: float | None
    perplexity_ratio: Estimate | None
    kl_divergence: Estimate | None
    weights_bytes: int
    memory_bytes: int | None
    concurrency: int | None
    tokens_per_second: float | None
    baseline_tokens_per_second: float | None
    speed_ratio: Estimate | None
    in_turn: bool
    on_front: bool
    generated: tuple[GenerationDifference, ...] = ()


@dataclass(frozen=True)
class ReleaseComparison:
    """All releases, the figures of the Pareto front, why figures were left out, and the inputs that differ.

    `inputs` is {recipe key or fact: one value for each release}.
    """

    rows: tuple[ReleaseRow, ...]
    compared_by: tuple[str, ...]
    left_out: tuple[str, ...]
    inputs: Mapping[str, tuple[str, ...]]


def compare(releases: Mapping[str, Release], *, seed: int = 0) -> ReleaseComparison:
    """Compare releases. Raises EvaluateError, with every reason, when their tasks differ; if held-out text, or server,
    machine and load differ, those figures are left out with the reason.
    """
    names = list(releases)
    artifacts = [release.artifact for release in releases.values()]
    all_keys = [keys(artifact) for artifact in artifacts]
    refused: list[Problem] = []
    left_out: list[str] = []
    text = machine = True
    for name, other in zip(names[1:], all_keys[1:], strict=True):
        refused += [
            Problem(_ASKED_DIFFERENTLY, why, Location(name=f"{names[0]} and {name}"))
            for why in reasons(all_keys[0].accuracy, other.accuracy)
        ]
        for why in reasons(all_keys[0].text, other.text):
            text = False
            left_out.append(f"held-out text of {names[0]} and {name}: {why}")
        for why in reasons(all_keys[0].machine, other.machine):
            machine = False
            left_out.append(f"speed and memory of {names[0]} and {name}: {why}")
    if refused:
        raise EvaluateError(
            _ASKED_DIFFERENTLY,
            "these releases can't be compared: their tasks or settings differ",
            hint="Build them with the same `evaluate:` section.",
            problems=tuple(refused),
        )
    quiet = True
    if twins := [name for name, release in releases.items() if release.artifact.emulated is not None]:
        machine = False
        left_out.append(f"speed and memory: a 16-bit twin was served in place of {', '.join(twins)}")
    for name, release in releases.items():
        if (work := release.comparison.other_work) is not None and work.disturbs:
            quiet = False
            left_out.append(f"speed of {name}: {work} during its load")
    means = [_accuracy(artifact) for artifact in artifacts]
    speeds = [_fastest(release) if machine and quiet else None for release in releases.values()]
    memory = [server_bytes(artifact.memory) if machine else None for artifact in artifacts]
    sizes = [float(memory[i] or artifacts[i].memory.weights_bytes) for i in range(len(names))]
    figures = [
        (means[i], -sizes[i], *([speed.artifact] if (speed := speeds[i]) is not None else []))
        for i in range(len(names))
    ]
    level = {len(figure) for figure in figures} == {3}
    on_front = pareto.front([figure if level else figure[:2] for figure in figures])
    compared_by = ("accuracy", "memory" if machine else "weights", *(("tokens per second",) if level else ()))
    rows = tuple(
        ReleaseRow(
            name=name,
            outcome=release.verdict.outcome,
            recovery=release.comparison.recovery,
            accuracy=means[i],
            accuracy_drop=release.comparison.accuracy_drop,
            against_first=_against(artifacts[0], artifacts[i], seed) if i else None,
            perplexity=release.comparison.perplexity_artifact if text else None,
            perplexity_ratio=release.comparison.perplexity_ratio if text else None,
            kl_divergence=release.comparison.kl_divergence if text else None,
            weights_bytes=artifacts[i].memory.weights_bytes,
            memory_bytes=memory[i],
            concurrency=speed.concurrency if speed else None,
            tokens_per_second=speed.artifact if speed else None,
            baseline_tokens_per_second=speed.baseline if speed else None,
            speed_ratio=speed.ratio if speed else None,
            in_turn=release.comparison.apart is None,
            on_front=on_front[i],
            generated=release.comparison.generated,
        )
        for i, ((name, release), speed) in enumerate(zip(releases.items(), speeds, strict=True))
    )
    return ReleaseComparison(rows, compared_by, tuple(left_out), inputs([*releases.values()]))


def inputs(releases: Sequence[Release]) -> dict[str, tuple[str, ...]]:
    """What differs: recipe keys as `quantize.method`, then facts of the build."""
    facts = [_facts(release) for release in releases]
    names = list(dict.fromkeys(name for fact in facts for name in fact))
    rows = {name: tuple(fact.get(name, "") for fact in facts) for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def _facts(release: Release) -> dict[str, str]:
    found = _flat(release.recipe)
    found |= {
        "source": release.source.resolved,
        "source digest": release.source.digest[:12],
        "calibration rows": release.calibration.digest[:12] if release.calibration else "none",
        "engine": f"{release.quantized.engine} {release.quantized.engine_version}",
        "server": release.artifact.server,
    }
    found |= {f"environment {e.name}": f"{e.variant} {e.lock_sha256[:12]}" for e in release.environments}
    return found


def _flat(value: Any, before: str = "") -> dict[str, str]:
    """A tree of plain data as {path with dots: value}."""
    if isinstance(value, Mapping):
        children = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, list | tuple):
        children = [(str(i), child) for i, child in enumerate(value)]
    else:
        return {before: "" if value is None else str(value)}
    return {
        path: text
        for key, child in children
        for path, text in _flat(child, f"{before}.{key}" if before else key).items()
    }


def _accuracy(evidence: Evidence) -> float:
    tasks = evidence.accuracy.tasks
    return math.fsum(task.mean for task in tasks) / len(tasks) if tasks else math.nan


def _fastest(release: Release) -> Throughput | None:
    """The speed at the most clients."""
    return max(side_by_side.throughput(release), key=lambda speed: speed.concurrency, default=None)


def _against(first: Evidence, other: Evidence, seed: int) -> Estimate:
    pairs = [
        (np.array([s.score for s in a.samples], dtype=np.float64), np.array([s.score for s in b.samples]))
        for a, b in zip(first.accuracy.tasks, other.accuracy.tasks, strict=True)
    ]
    return estimates.paired_drop(pairs, seed=seed)
