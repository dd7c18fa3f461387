"""A run in MLflow's file layout (`mlruns/`): `mlflow ui --backend-store-uri FOLDER/mlruns` shows it, and
`mlflow-export-import` moves it to a server. No MLflow is needed to write it.

https://mlflow.org/docs/latest/self-hosting/architecture/backend-store/ (file store); a metric's line is
"milliseconds value step".
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re

from evals.report import markdown
from evals.report.exports.scores import figures, sides
from qpack.core.records import Release

EXPERIMENT = "qpack"
_NO_NAME = re.compile(r"[^A-Za-z0-9_./ -]+")


def files(release: Release, where: str = ".") -> dict[str, str]:
    """The experiment `qpack` with one run: figures and scores as metrics, the recipe's choices as parameters, the
    recipe and the verdict as artifacts. `where` is the folder's URI, which MLflow keeps with the run.
    """
    made = datetime.datetime.fromisoformat(release.created)
    if made.tzinfo is None:
        made = made.replace(tzinfo=datetime.UTC)
    stamp = int(made.timestamp() * 1000)
    run = hashlib.sha256(f"{release.name}:{release.quantized.digest}:{release.created}".encode()).hexdigest()[:32]
    experiment = str(int(hashlib.sha256(EXPERIMENT.encode()).hexdigest()[:15], 16))
    top, base = f"mlruns/{experiment}", f"mlruns/{experiment}/{run}"
    found = {
        f"{top}/meta.yaml": _meta(
            artifact_location=f"{where}/{top}",
            creation_time=stamp,
            experiment_id=experiment,
            last_update_time=stamp,
            lifecycle_stage="active",
            name=EXPERIMENT,
        ),
        f"{base}/meta.yaml": _meta(
            artifact_uri=f"{where}/{base}/artifacts",
            end_time=stamp,
            entry_point_name="",
            experiment_id=experiment,
            lifecycle_stage="active",
            run_id=run,
            run_name=release.name,
            source_name="qpack",
            source_type=4,
            source_version=release.qpack_version,
            start_time=stamp,
            status=3,
            tags=[],
            user_id="",
        ),
    }
    for name, value in metrics(release).items():
        found[f"{base}/metrics/{_safe(name)}"] = f"{stamp} {value!r} 0\n"
    for name, text in parameters(release).items():
        found[f"{base}/params/{name}"] = text
    tags = {
        "mlflow.runName": release.name,
        "mlflow.source.name": "qpack",
        "mlflow.source.type": "LOCAL",
        "qpack.verdict": release.verdict.outcome,
        "qpack.digest": release.quantized.digest,
    }
    found |= {f"{base}/tags/{name}": text for name, text in tags.items()}
    found[f"{base}/artifacts/recipe.yaml"] = release.recipe_text
    found[f"{base}/artifacts/verdict.md"] = markdown.render(release, release.verdict, release.name)
    return found


def metrics(release: Release) -> dict[str, float]:
    """Figures of the comparison, and each task's score of both models."""
    found = figures(release)
    for side in sides(release):
        found |= {f"{side.role}.{task.task}": task.mean for task in side.evidence.accuracy.tasks}
    return found


def parameters(release: Release) -> dict[str, str]:
    """What was quantized, and how."""
    q = release.quantized
    found = {
        "source": release.source.resolved,
        "method": q.method,
        "scheme": q.scheme,
        "group_size": q.group_size,
        "engine": f"{q.engine} {q.engine_version}",
        "server": release.artifact.server,
        "hardware": release.artifact.hardware.name,
    }
    return {name: str(value) for name, value in found.items()}


def _safe(name: str) -> str:
    """A name that MLflow takes: letters, digits, _ - . / and blanks, and no folder above its own."""
    return _NO_NAME.sub("_", name).replace("..", "_").strip("/.") or "metric"


def _meta(**values: object) -> str:
    """Flat YAML; JSON's scalars and lists are YAML's."""
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in sorted(values.items()))
