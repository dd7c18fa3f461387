"""Scores in the two forms that the Hub reads: files in `.eval_results/`, and `model-index` in the card.

The first is the current form (https://huggingface.co/docs/hub/eval-results), for data sets that are registered as
benchmarks: their leaderboards read scores from models' repositories. `model-index` is the legacy form, which the Hub
still reads. Each score is in one of them (docs/decisions/0044).
"""

from __future__ import annotations

import yaml

from qpack.core.records import Release, TaskScore
from registry.core.documents import Document

FILE = ".eval_results/qpack.yaml"
"""In a release, and in a repository on the Hub."""

_GSM8K, _DIAMOND = ("openai/gsm8k", "gsm8k"), ("Idavidrein/gpqa", "gpqa_diamond")
# lm-eval tasks that cover a whole registered benchmark: its data set, and the task's id there.
_BENCHMARKS = {
    **dict.fromkeys(("lm_eval:gsm8k", "lm_eval:gsm8k_cot", "lm_eval:gsm8k_cot_zeroshot"), _GSM8K),
    **{
        f"lm_eval:gpqa_diamond_{how}": _DIAMOND
        for how in ("zeroshot", "n_shot", "cot_zeroshot", "cot_n_shot", "generative_n_shot")
    },
}
# Data sets of qpack's own tasks on the Hub.
_DATA_SETS = {
    "qpack_piqa": ("baber/piqa", "PIQA"),
    "qpack_openbookqa": ("allenai/openbookqa", "OpenBookQA"),
    "qpack_commonsenseqa": ("tau/commonsense_qa", "CommonsenseQA"),
    "qpack_siqa": ("allenai/social_i_qa", "Social IQa"),
    "qpack_asdiv": ("EleutherAI/asdiv", "ASDiv"),
}


def render(release: Release) -> str | None:
    """The content of the file in `.eval_results/`; None without such scores."""
    found = [_entry(release, task) for task in release.artifact.accuracy.tasks if _of_a_benchmark(task)]
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True) if found else None


def model_index(release: Release) -> list[Document]:
    """`model-index`, with the scores that aren't of a registered benchmark; may be empty."""
    results = [_result(task) for task in release.artifact.accuracy.tasks if not _of_a_benchmark(task)]
    return [{"name": release.name, "results": results}] if results else []


def _of_a_benchmark(task: TaskScore) -> bool:
    """Whether a score belongs on a benchmark's leaderboard; scores of samples don't."""
    return task.task in _BENCHMARKS and task.limit is None and task.metric in ("acc", "acc_norm", "exact_match")


def _entry(release: Release, task: TaskScore) -> Document:
    dataset, identifier = _BENCHMARKS[task.task]
    accuracy = release.artifact.accuracy
    notes = [
        f"lm-eval {accuracy.lm_eval_version}, {task.task.removeprefix('lm_eval:')} version {task.version}",
        f"{task.metric} over {len(task.samples)} items",
        f"{task.few_shot}-shot",
        *(["chat template"] if task.chat_template else []),
        f"served by {release.artifact.server}",
    ]
    return {
        "dataset": {"id": dataset, "task_id": identifier},
        # Per cent, as most published scores.
        "value": round(100 * task.mean, 4),
        "date": release.created,
        "notes": ", ".join(notes),
    }


def _result(task: TaskScore) -> Document:
    """One result, in the form of the Hub's modelcard.md."""
    plain = task.task.removeprefix("lm_eval:")
    identifier, name = _DATA_SETS.get(task.task, (plain, plain))
    return {
        "task": {"type": "text-generation"},
        "dataset": {"type": identifier, "name": f"{name}, {len(task.samples)} items, {task.few_shot}-shot"},
        "metrics": [
            {
                "type": "accuracy" if task.metric in ("acc", "acc_norm") else task.metric,
                "value": round(task.mean, 6),
                "name": task.metric,
            }
        ],
    }
