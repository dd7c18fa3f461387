"""Claims about a release's evaluation in other tools' formats. What the tools make of them is in `tests/contract`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from evals.report.exports import every_eval_ever, lm_eval_results, mlflow_run
from qpack.cli.render import report
from qpack.core.errors import EvaluateError, RegistryError
from qpack.core.records import Release
from tests.codes import coded
from tests.unit import evidence_samples as samples


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return samples.make_release(tmp_path_factory.mktemp("release"))


@pytest.mark.parametrize("maker", [every_eval_ever, lm_eval_results, mlflow_run])
def test_the_same_release_gives_the_same_files(release: Release, maker: object) -> None:
    files = maker.files  # type: ignore[attr-defined]
    assert files(release) == files(release)
    assert all(not path.startswith("/") and ".." not in path for path in files(release))


def test_lm_eval_has_every_score_with_its_standard_error_and_every_item(release: Release) -> None:
    files = lm_eval_results.files(release)
    found = [json.loads(text) for path, text in files.items() if "/results_" in path]
    assert len(found) == 2
    for document, side in zip(found, (release.baseline, release.artifact), strict=True):
        for task in side.accuracy.tasks:
            scores = document["results"][task.task]
            assert scores[f"{task.metric},none"] == task.mean
            p, n = task.mean, len(task.samples)
            assert scores[f"{task.metric}_stderr,none"] == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
    (lines,) = [text for path, text in files.items() if "samples_piqa" in path and path.startswith("artifact")]
    assert [json.loads(line)["acc_norm"] for line in lines.splitlines()] == [
        sample.score for sample in release.artifact.accuracy.tasks[0].samples
    ]


def test_every_eval_ever_has_what_its_schema_requires(release: Release) -> None:
    for text in every_eval_ever.files(release).values():
        document = json.loads(text)
        assert {"schema_version", "evaluation_id", "retrieved_timestamp", "source_metadata", "model_info"} <= set(
            document
        )
        assert float(document["retrieved_timestamp"]) > 0
        assert {"deployment_type", "model_availability"} <= set(document["model_info"]["additional_details"])
        assert {type(value) for value in document["model_info"]["additional_details"].values()} == {str}
        for result in document["evaluation_results"]:
            assert 0 <= result["score_details"]["score"] <= 1
        last = document["evaluation_results"][-1]["generation_config"]
        assert last == {
            "generation_args": {"temperature": 0.6, "top_p": 0.95, "max_tokens": 512},
            "additional_details": {"repeats": "4"},
        }


def test_an_mlflow_run_has_the_figures_of_the_comparison(release: Release) -> None:
    files = mlflow_run.files(release)
    lines = {path.partition("/metrics/")[2]: text for path, text in files.items() if "/metrics/" in path}
    assert float(lines["recovery"].split()[1]) == release.comparison.recovery.value  # type: ignore[union-attr]
    assert {"baseline.piqa", "artifact.piqa", "kl_divergence", "size_ratio"} <= set(lines)


def test_names_from_a_release_name_no_other_folder(release: Release) -> None:
    named = release.model_copy(
        update={"source": release.source.model_copy(update={"base_model": None, "source": "hf://../../etc/x@main"})}
    )
    for maker in (every_eval_ever, lm_eval_results, mlflow_run):
        assert all(".." not in Path(path).parts for path in maker.files(named))


def test_a_folder_that_is_there_is_not_overwritten(release: Release, tmp_path: Path) -> None:
    for form in ("every-eval-ever", "lm-eval", "mlflow"):
        target = tmp_path / form
        report.reported(release, form, target, as_json=True)
        written = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
        assert len(written) > 1
        with pytest.raises(RegistryError):
            report.reported(release, form, target, as_json=True)
        assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == written


def test_the_hub_gets_scores_of_whole_benchmarks_alone(release: Release, tmp_path: Path) -> None:
    with pytest.raises(EvaluateError, check=coded("not-on-the-hub")):
        report.reported(release, "hub", tmp_path / "x.yaml", as_json=True)
