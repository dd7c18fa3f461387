"""Every Eval Ever (https://github.com/evaleval/every_eval_ever), schema 0.3.0: one JSON file per model."""

from __future__ import annotations

import datetime
import json
import uuid
from typing import Any

from evals.report.exports.scores import HUB_PREFIX, Side, plain_name, sides, standard_error
from qpack.core.records import Release, TaskScore

SCHEMA = "0.3.0"
_NAMESPACE = uuid.UUID("5c5a2bd3-6f43-4a6a-9d0e-3b6c8a3f0b57")


def files(release: Release) -> dict[str, str]:
    """`ROLE/UUID.json` for baseline and artifact. The same release gives the same files."""
    found = {}
    for side in sides(release):
        record = document(release, side)
        name = uuid.uuid5(_NAMESPACE, record["evaluation_id"])
        found[f"{side.role}/{name}.json"] = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    return found


def document(release: Release, side: Side) -> dict[str, Any]:
    """One model's record."""
    made = datetime.datetime.fromisoformat(release.created)
    if made.tzinfo is None:
        made = made.replace(tzinfo=datetime.UTC)
    stamp = str(made.timestamp())
    server, _, version = side.evidence.server.partition(" ")
    tasks = side.evidence.accuracy.tasks
    return {
        "schema_version": SCHEMA,
        "evaluation_id": f"qpack/{side.name}/{stamp}",
        "evaluation_timestamp": release.created,
        "retrieved_timestamp": stamp,
        "source_metadata": {
            "source_name": f"qpack {release.qpack_version}",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "third_party" if side.role == "baseline" else "first_party",
        },
        "eval_library": {"name": "lm_eval", "version": side.evidence.accuracy.lm_eval_version},
        "model_info": {
            "name": side.name,
            "id": side.name,
            "inference_platform": "local",
            "inference_engine": {"name": server, "version": version},
            "additional_details": _model(release, side),
        },
        "evaluation_results": [_result(task, side.evidence.accuracy.lm_eval_version) for task in tasks],
    }


def _model(release: Release, side: Side) -> dict[str, str]:
    open_weights = release.source.source.startswith("hf://")
    found = {
        "deployment_type": "self_deployed",
        "model_availability": "open_weights" if open_weights else "unknown",
        "digest": side.evidence.model_digest,
        "hardware": side.evidence.hardware.name,
    }
    if side.role == "artifact":
        q = release.quantized
        found |= {"quantization_method": q.method, "quantization_scheme": q.scheme, "engine": q.engine}
        if (recovery := release.comparison.recovery) is not None:
            found["recovery"] = repr(recovery.value)
    return found


def _result(task: TaskScore, version: str) -> dict[str, Any]:
    error = standard_error(task)
    hub = task.task.startswith(HUB_PREFIX)
    where = {"source_type": "other", "additional_details": {"lm_eval_task": plain_name(task)} if hub else {}}
    uncertainty: dict[str, Any] = {"num_samples": len(task.samples)}
    if error is not None:
        uncertainty["standard_error"] = {"value": error, "method": "analytic"}
    details = {"few_shot": str(task.few_shot), "task_version": task.version, "seed": str(task.seed)}
    result = {
        "evaluation_name": plain_name(task),
        "source_data": {"dataset_name": plain_name(task), **where},
        "metric_config": {
            "evaluation_description": f"{task.metric}, lm-eval {version}",
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": 0.0,
            "max_score": 1.0,
        },
        "score_details": {"score": task.mean, "details": details, "uncertainty": uncertainty},
    }
    if (how := task.generation) is not None:
        arguments: dict[str, Any] = {"temperature": how.temperature, "top_p": how.top_p}
        if how.max_tokens is not None:
            arguments["max_tokens"] = how.max_tokens
        result["generation_config"] = {
            "generation_args": arguments,
            "additional_details": {"repeats": str(how.repeats)},
        }
    return result
