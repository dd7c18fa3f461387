"""A gain beyond noise, looked into: which items, and which answers where they are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from qpack.core.records import Comparison, Evidence, GainedItem

ANSWERS = Path("lm-eval") / "answers.jsonl"
"""Every answer of tasks asked over chat, in the folder of a model's accuracy."""
_ITEMS, _LONGEST, _LINE = 5, 400, 4_000_000


def find(
    comparison: Comparison,
    baseline: Evidence,
    artifact: Evidence,
    answers: tuple[Path | None, Path | None],
    prompts: Mapping[str, Mapping[str, str]],
) -> tuple[GainedItem, ...]:
    """At most five items of each task whose whole interval is a gain, those first that gained most.

    `answers` are the two models' files of answers, `prompts` are {task: {item: text}} of tasks whose texts are at hand.
    """
    found: list[GainedItem] = []
    scores = {task.task: task for task in artifact.accuracy.tasks}
    for task, before in zip(comparison.tasks, baseline.accuracy.tasks, strict=False):
        after, interval = scores.get(task.task), task.drop.interval
        if after is None or interval is None or interval.high >= 0:
            continue
        pairs = [
            (b.id, b.score, a.score) for b, a in zip(before.samples, after.samples, strict=False) if a.score > b.score
        ]
        for item, b_score, a_score in sorted(pairs, key=lambda pair: pair[1] - pair[2])[:_ITEMS]:
            prompt = prompts.get(task.task, {}).get(item, "")
            found.append(
                GainedItem(task=task.task, item=item, baseline=b_score, artifact=a_score, prompt=prompt[:_LONGEST])
            )
    texts = [_answers(file, {each.item for each in found}) if file and found else {} for file in answers]
    return tuple(
        each.model_copy(
            update={
                "prompt": each.prompt or texts[0].get(each.item, ("", ""))[0],
                "baseline_answer": texts[0].get(each.item, ("", ""))[1],
                "artifact_answer": texts[1].get(each.item, ("", ""))[1],
            }
        )
        for each in found
    )


def _answers(file: Path, items: set[str]) -> dict[str, tuple[str, str]]:
    """{item: (prompt, first answer)}, each cut; empty without the file."""
    found: dict[str, tuple[str, str]] = {}
    try:
        with file.open(encoding="utf-8") as lines:
            while line := lines.readline(_LINE):
                answer = json.loads(line)
                if answer["item"] in items and answer["item"] not in found:
                    found[answer["item"]] = (str(answer["prompt"])[:_LONGEST], str(answer["text"])[:_LONGEST])
    except (OSError, ValueError, KeyError, TypeError):
        return found
    return found
