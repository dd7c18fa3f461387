"""Comparison keys: what must be equal before figures of two models may be compared.

Three groups: `accuracy` (the tasks and their settings), `text` (the held-out text, in tokens, so models with different
tokenizers never share it) and `machine` (for speed and memory: the server, the hardware, the load).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from qpack.core.records import Evidence, TaskScore


@dataclass(frozen=True)
class Keys:
    """Each group as {name: value as text}."""

    accuracy: Mapping[str, str]
    text: Mapping[str, str]
    machine: Mapping[str, str]


def keys(evidence: Evidence) -> Keys:
    """The comparison keys of one model's evidence."""
    accuracy = {"lm-eval": evidence.accuracy.lm_eval_version, "tasks": ", ".join(t.task for t in _tasks(evidence))}
    for task in _tasks(evidence):
        accuracy |= {f"{task.task}: {what}": value for what, value in _task(task).items()}
    h, latency = evidence.hardware, evidence.latency
    loads = [f"{x.concurrency} x {x.input_tokens} in, {x.output_tokens} out" for x in latency.levels]
    loads += [f"{x.rate:g} per second, {x.input_tokens} in, {x.output_tokens} out" for x in latency.open_levels]
    return Keys(
        accuracy=accuracy,
        text={
            "held-out text": evidence.language.text_digest[:12],
            "log-probabilities": f"top {evidence.language.top_k}"
            + (f", whole at {n} positions" if (n := evidence.language.whole_positions) else ""),
        },
        machine={
            "hardware": f"{h.target}, {h.name}, {h.cores} cores"
            + (f", {h.accelerators} accelerators" if h.accelerators else ""),
            "server": evidence.server,
            "load tool": latency.tool,
            "load": "; ".join(loads) or "none",
            "KV cache, bytes": f"{evidence.memory.kv_cache_bytes:,}",
            "variables": ", ".join(f"{name}={value}" for name, value in evidence.variables.items()) or "none",
        },
    )


def reasons(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Where two groups differ, each as `name: this and that`; empty when they can be compared."""
    names = [*one, *(name for name in other if name not in one)]
    return [
        f"{name}: {one.get(name, 'none')} and {other.get(name, 'none')}"
        for name in names
        if one.get(name) != other.get(name)
    ]


def _tasks(evidence: Evidence) -> tuple[TaskScore, ...]:
    return evidence.accuracy.tasks


def _task(task: TaskScore) -> dict[str, str]:
    ids = hashlib.sha256("\n".join(sample.id for sample in task.samples).encode()).hexdigest()
    return {
        "version": task.version,
        "metric": task.metric,
        "few-shot examples": str(task.few_shot),
        "chat template": (task.chat_template or "none")[:12],
        "seed": str(task.seed),
        **({"generation": task.generation.model_dump_json()} if task.generation else {}),
        "items": f"{len(task.samples):,} ({ids[:12]})",
    }
