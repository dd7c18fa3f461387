"""Releases side by side: for `qpack compare` and `qpack sweep`."""

from __future__ import annotations

import dataclasses
from typing import Any

from evals.gates.gates import figure
from evals.report.release_comparison import ReleaseComparison, ReleaseRow
from qpack.cli.render.text import table
from qpack.core.records import Estimate

_MIB = 2**20


def ranking(found: ReleaseComparison) -> None:
    """The figures of each and which of them are on the front."""
    rows = found.rows
    speed = next((row.concurrency for row in rows if row.tokens_per_second is not None), None)
    columns: list[tuple[str, list[str]]] = [
        ("", [row.name for row in rows]),
        ("front", ["*" if row.on_front else "" for row in rows]),
        ("gates", [row.outcome for row in rows]),
        ("recovery", [_share(row.recovery) if row.recovery else "" for row in rows]),
        ("accuracy", [f"{row.accuracy:.4f}" for row in rows]),
        ("change from its baseline", [_signed(row.accuracy_drop) for row in rows]),
        ("change from the first", [_signed(row.against_first) if row.against_first else "" for row in rows]),
        ("perplexity", [f"{row.perplexity:.3f}" if row.perplexity is not None else "" for row in rows]),
        ("KL, nats", [figure(row.kl_divergence.value) if row.kl_divergence else "" for row in rows]),
        ("weights, MiB", [f"{row.weights_bytes / _MIB:,.1f}" for row in rows]),
        ("memory, MiB", [f"{row.memory_bytes / _MIB:,.1f}" if row.memory_bytes is not None else "" for row in rows]),
        (
            f"tok/s, {speed} at once",
            [f"{row.tokens_per_second:.1f}" if row.tokens_per_second is not None else "" for row in rows],
        ),
    ]
    columns.append(("over its baseline", [_speed(row) for row in rows]))
    shown = [(head, cells) for head, cells in columns if any(cells)]
    table([head for head, _ in shown], list(zip(*(cells for _, cells in shown), strict=True)))
    print(f"\n* on the Pareto front of {', '.join(found.compared_by)}: no other is at least as good in all of them.")
    print("Recovery and changes in accuracy are on the same items, with 90 % intervals.")
    if speed is not None:
        alone = [row.name for row in rows if not row.in_turn]
        beside = f", and so was the baseline of {', '.join(alone)}" if alone else ""
        print(
            f"Tokens per second were measured one release after the other{beside}; other load on the machine affects"
            " them."
        )
    for why in found.left_out:
        print(f"not compared: {why}")


def _speed(row: ReleaseRow) -> str:
    """The ratio, and the baseline's tokens per second that it is over."""
    if row.speed_ratio is None or row.baseline_tokens_per_second is None:
        return ""
    return f"{_times(row.speed_ratio)} of {row.baseline_tokens_per_second:.1f}"


def as_data(found: ReleaseComparison) -> dict[str, Any]:
    """The figures as JSON."""
    rows = [
        {
            field.name: value.model_dump(mode="json") if isinstance(value, Estimate) else value
            for field in dataclasses.fields(row)
            for value in (getattr(row, field.name),)
            if field.name != "generated"
        }
        | {"generated": [task.model_dump(mode="json") for task in row.generated]}
        for row in found.rows
    ]
    return {"rows": rows, "compared_by": found.compared_by, "left_out": found.left_out, "inputs": dict(found.inputs)}


def _share(kept: Estimate) -> str:
    text = f"{kept.value:.1%}"
    return text if kept.interval is None else f"{text} [{kept.interval.low:.1%}, {kept.interval.high:.1%}]"


def _signed(drop: Estimate) -> str:
    """A drop as the change that it is: negative is worse."""
    text = f"{-drop.value:+z.4f}"
    return text if drop.interval is None else f"{text} [{-drop.interval.high:+z.4f}, {-drop.interval.low:+z.4f}]"


def _times(ratio: Estimate) -> str:
    text = f"x{ratio.value:.3f}"
    return text if ratio.interval is None else f"{text} [{ratio.interval.low:.3f}, {ratio.interval.high:.3f}]"
