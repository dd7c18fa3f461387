"""The model card, as a stranger reads it.

After a wanted change, write the golden file anew: UPDATE_SNAPSHOTS=1 pytest tests/unit/test_card.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

import tests.unit.registry_examples as examples
from registry import card

GOLDEN = Path(__file__).parent / "snapshots" / "card.md"


def test_the_card_reads_as_agreed() -> None:
    text = card.render(examples.release(), examples.serving())
    if os.environ.get("UPDATE_SNAPSHOTS"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_the_hub_reads_the_front_matter() -> None:
    data = ModelCard(card.render(examples.release(), examples.serving())).data.to_dict()
    assert data["base_model"] == "example/small"
    assert data["base_model_relation"] == "quantized"
    assert data["license"] == "apache-2.0"
    assert data["pipeline_tag"] == "text-generation"
    assert data["library_name"] == "transformers"
    assert {"vllm", "gptq", "w4a16"} <= set(data["tags"])


def test_the_hub_reads_the_figures() -> None:
    release = examples.release()
    data = ModelCard(card.render(release, examples.serving())).data
    assert data.model_name == release.name
    (found,) = data.eval_results
    (task,) = release.artifact.accuracy.tasks
    assert (found.metric_type, found.metric_name, found.metric_value) == ("accuracy", task.metric, task.mean)
    assert (found.task_type, found.dataset_type) == ("text-generation", task.task)


def test_a_source_that_is_not_on_the_hub_is_no_base_model() -> None:
    found = card.metadata(examples.release(source="pkg://llm-small/model.gguf"))
    assert "base_model" not in found
    assert "base_model_relation" not in found


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        (None, {"license": "unknown"}),
        ("MIT", {"license": "mit"}),
        ("Acme Model License 2", {"license": "other", "license_name": "acme-model-license-2"}),
    ],
)
def test_a_licence_is_one_that_the_hub_knows_or_other(identifier: str | None, expected: dict[str, str]) -> None:
    found = card.metadata(examples.release(license_id=identifier))
    assert {key: value for key, value in found.items() if key.startswith("license")} == expected


def test_a_forced_release_says_so_before_anything_else() -> None:
    text = card.render(examples.release(failed=True), examples.serving())
    body = text.split("---\n", 2)[2]
    first = body.split("\n\n")[1]
    assert body.lstrip().startswith("# small-gptq")
    assert "Published although gates did not pass" in first
    assert "Published although" not in card.render(examples.release(), examples.serving())


def test_a_release_without_calibration_data_says_so() -> None:
    release = examples.release().model_copy(update={"calibration": None})
    assert "needs no calibration data" in card.render(release, examples.serving())


def test_every_table_row_has_as_many_cells_as_its_header() -> None:
    text = card.render(examples.release(failed=True), examples.serving())
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) >= 8
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(widths) == 1, table


@given(st.text())
def test_no_text_breaks_out_of_a_table(text: str) -> None:
    assert not re.search(r"[\n\r]|(?<!\\)\||<", card.cell(text))


@given(st.floats(min_value=-10, max_value=10, allow_nan=False).filter(lambda value: value != 0))
def test_a_figure_that_is_not_zero_is_not_shown_as_zero(value: float) -> None:
    assert float(card.number(value)) != 0
