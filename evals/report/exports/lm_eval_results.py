"""A results folder as lm-eval writes one with `--output_path --log_samples`: `results_DATE.json` and samples per task,
for each model. lm-eval's own tools read it (`make_table`, `--hf_hub_log_args`, leaderboards).
"""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

from evals.report.exports.scores import Side, plain_name, sides, standard_error
from qpack.core.records import Release, TaskScore

_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+")


def files(release: Release) -> dict[str, str]:
    """`MODEL/results_DATE.json` and `MODEL/samples_TASK_DATE.jsonl` for baseline and artifact."""
    found = {}
    date = release.created.replace(":", "-")
    for side in sides(release):
        folder = _NO_NAME.sub("__", f"{side.role}-{side.name}")
        found[f"{folder}/results_{date}.json"] = json.dumps(results(release, side), indent=2, ensure_ascii=False) + "\n"
        for task in side.evidence.accuracy.tasks:
            name = _NO_NAME.sub("__", plain_name(task))
            found[f"{folder}/samples_{name}_{date}.jsonl"] = "".join(_samples(task))
    return found


def results(release: Release, side: Side) -> dict[str, Any]:
    """The aggregated results. Figures that qpack doesn't know are left out, not invented."""
    tasks = side.evidence.accuracy.tasks
    made = datetime.datetime.fromisoformat(release.created)
    settings = next((task.generation for task in tasks if task.generation), None)
    return {
        "results": {plain_name(task): _scores(task) for task in tasks},
        "group_subtasks": {plain_name(task): [] for task in tasks},
        "configs": {
            plain_name(task): {
                "task": plain_name(task),
                "num_fewshot": task.few_shot,
                "repeats": task.generation.repeats if task.generation else 1,
                "metadata": {"version": task.version},
            }
            for task in tasks
        },
        "versions": {plain_name(task): task.version for task in tasks},
        "n-shot": {plain_name(task): task.few_shot for task in tasks},
        "higher_is_better": {plain_name(task): {_metric(task)[0]: True} for task in tasks},
        "n-samples": {plain_name(task): {"effective": len(task.samples)} for task in tasks},
        "config": {
            "model": "local-chat-completions" if settings else "local-completions",
            "model_args": {"model": side.name, "server": side.evidence.server},
            "limit": tasks[0].limit if tasks else None,
            "random_seed": tasks[0].seed if tasks else 0,
            "gen_kwargs": {"temperature": settings.temperature, "top_p": settings.top_p} if settings else {},
        },
        "date": made.timestamp(),
        "lm_eval_version": side.evidence.accuracy.lm_eval_version,
        "model_source": "qpack",
        "model_name": side.name,
        "model_name_sanitized": _NO_NAME.sub("__", side.name),
        "chat_template_sha": next((task.chat_template for task in tasks if task.chat_template), None),
    }


def _metric(task: TaskScore) -> tuple[str, str]:
    """(metric, filter): a recipe names both where a task has several filters."""
    metric, _, chosen = task.metric.partition(",")
    return metric, chosen or "none"


def _scores(task: TaskScore) -> dict[str, Any]:
    metric, chosen = _metric(task)
    error = standard_error(task)
    return {
        "alias": plain_name(task),
        f"{metric},{chosen}": task.mean,
        f"{metric}_stderr,{chosen}": "N/A" if error is None else error,
    }


def _samples(task: TaskScore) -> list[str]:
    """One line per item: its score; texts aren't part of a release."""
    metric, chosen = _metric(task)
    lines = []
    for sample in task.samples:
        _, index, digest = (["", "", "", *sample.id.rsplit(":", 2)])[-3:]
        line = {
            "doc_id": int(index) if index.isdigit() else sample.id,
            "doc_hash": digest,
            "filter": chosen,
            "metrics": [metric],
            metric: sample.score,
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return lines
