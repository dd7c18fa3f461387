"""The model card, as a stranger reads it.

After a wanted change, write the golden file anew: UPDATE_SNAPSHOTS=1 pytest tests/unit/test_card.py
"""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, eval_result_entries_to_yaml, parse_eval_result_entries
from hypothesis import given
from hypothesis import strategies as st

import tests.unit.registry_examples as examples
from qpack.core.records import Release, TaskScore
from registry.release import card, eval_results

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


def test_a_release_of_the_source_as_it_is_says_so() -> None:
    example = examples.release()
    same = example.quantized.model_copy(update={"method": "none", "scheme": "BF16", "engine": "copy"})
    text = card.render(example.model_copy(update={"quantized": same}), examples.serving())
    assert "as it is: BF16, not quantized." in text
    assert "quantization of" not in text
    data = ModelCard(text).data.to_dict()
    assert (data["base_model"], data.get("base_model_relation")) == ("example/small", None)


def test_the_hub_reads_the_figures() -> None:
    release = examples.release()
    data = ModelCard(card.render(release, examples.serving())).data
    assert data.model_name == release.name
    (found,) = data.eval_results
    (task,) = release.artifact.accuracy.tasks
    assert (found.metric_type, found.metric_name, found.metric_value) == ("accuracy", task.metric, task.mean)
    assert (found.task_type, found.dataset_type) == ("text-generation", task.task)


def _scored(task: TaskScore) -> Release:
    release = examples.release()
    accuracy = release.artifact.accuracy.model_copy(update={"tasks": (*release.artifact.accuracy.tasks, task)})
    return release.model_copy(update={"artifact": release.artifact.model_copy(update={"accuracy": accuracy})})


GSM8K = (
    examples.release()
    .artifact.accuracy.tasks[0]
    .model_copy(update={"task": "lm_eval:gsm8k", "metric": "exact_match", "few_shot": 5})
)


def test_all_of_a_registered_benchmark_is_a_score_in_the_hubs_current_form() -> None:
    release = _scored(GSM8K)
    text = eval_results.render(release)
    assert text is not None
    raw = yaml.safe_load(text)
    (entry,) = parse_eval_result_entries(raw)
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 36.4)
    assert entry.date == release.created
    assert "exact_match over 500 items, 5-shot, served by vllm 0.32.0" in str(entry.notes)
    # What the client would write of it is what is there: no key that it doesn't know.
    assert eval_result_entries_to_yaml([entry]) == raw


def test_a_score_is_told_to_the_hub_in_one_form_and_never_in_both() -> None:
    data = ModelCard(card.render(_scored(GSM8K), examples.serving())).data
    assert [found.dataset_type for found in data.eval_results] == ["openbookqa"]
    assert eval_results.render(examples.release()) is None


def test_a_score_of_a_sample_is_on_no_leaderboard() -> None:
    release = _scored(GSM8K.model_copy(update={"limit": 500}))
    assert eval_results.render(release) is None
    found = ModelCard(card.render(release, examples.serving())).data.eval_results
    assert [(one.dataset_type, one.metric_type) for one in found][1] == ("gsm8k", "exact_match")


@pytest.mark.parametrize(
    ("quantize", "made", "expected"),
    [
        ({}, {}, "# small-gptq (W4A16)"),
        ({"overrides": [{}]}, {"format": "compressed-tensors"}, "# small-gptq (mixed W4A16, compressed-tensors)"),
        (
            {"budget": 4.6, "kv_cache": "fp8"},
            {"bits_per_weight": 4.587},
            "# small-gptq (mixed W4A16, 4.59 bits per weight within 4.6, fp8 KV cache)",
        ),
    ],
)
def test_the_title_names_scheme_bits_and_format(quantize: object, made: dict[str, object], expected: str) -> None:
    release = examples.release()
    quantized = release.quantized.model_copy(update=made)
    release = release.model_copy(update={"recipe": {"quantize": quantize}, "quantized": quantized})
    assert f"\n{expected}\n" in card.render(release, examples.serving())


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


@given(st.floats(min_value=-10, max_value=10, allow_nan=False).filter(lambda value: value != 0))
def test_a_figure_that_is_not_zero_is_not_shown_as_zero(value: float) -> None:
    assert float(card.number(value)) != 0


def test_a_base_model_that_the_recipe_names_is_the_one_on_the_card() -> None:
    """Of a source in a folder or a package only the recipe can say which model on the Hub it holds."""
    release = examples.release(source="./model")
    source = release.source.model_copy(update={"base_model": "org/Base-8B"})
    release = release.model_copy(update={"source": source})
    text = card.render(release, examples.serving())
    data = ModelCard(text).data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("org/Base-8B", "quantized")
    assert "https://huggingface.co/org/Base-8B" in text


@pytest.mark.parametrize("templated", [True, False])
def test_the_example_request_is_one_that_the_model_can_answer(templated: bool) -> None:
    found = examples.serving()
    digest = "5" * 64 if templated else None
    serving = found.model_copy(update={"model": found.model.model_copy(update={"chat_template_digest": digest})})
    text = card.render(examples.release(), serving)
    (line,) = re.findall(r"^curl (?:.*\\\n)*.*$", text, flags=re.MULTILINE)
    _, url, _, _, _, body = shlex.split(line.replace("\\\n", ""))
    asked = json.loads(body)
    assert asked["model"] == serving.model.served_model_name
    assert (url.endswith("/v1/chat/completions"), "messages" in asked, "prompt" in asked) == (
        templated,
        templated,
        not templated,
    )
    assert ("no chat template" in text) is not templated


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("identifier", ["llama3", None])
@pytest.mark.parametrize("source", ["hf://example/small@main", "./model"])
def test_the_card_says_where_the_licence_is(source: str, identifier: str | None, text: bool) -> None:
    made = card.render(examples.release(source=source, license_id=identifier), examples.serving(), license_text=text)
    (section,) = re.findall(r"^## Licence\n(.*?)^## ", made, flags=re.MULTILINE | re.DOTALL)
    assert ("LICENSE" in section) is text
    assert ("huggingface.co/example/small" in section) is (source.startswith("hf") and not text)
    assert (identifier or "") in section
