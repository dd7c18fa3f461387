"""The recipe that is published is the one that took effect: building from it makes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qpack.core import yamlfile
from qpack.core.store import Store
from qpack.pipeline import plan
from qpack.recipe import effective, recipe_file
from tests.unit.recipes import RECIPE, workspace

SETTINGS = (
    "quantize.method=rtn",
    "quantize.scheme=W8A8",
    "quantize.group_size=null",
    "evaluate.tasks=[{task: qpack_piqa, samples: 3}, {task: qpack_siqa}]",
    "evaluate.tasks.0.samples=7",
    "serve.arguments={max-num-seqs: 4, speculative-config: {method: ngram}}",
    'serve.environment={VLLM_CPU_KVCACHE_SPACE: "2"}',
    'model.license="of two\\nlines: and a colon # no comment"',
    "gates.accuracy_drop=1e-3",
    "publish.alias=null",
    "calibration.seed=12",
)


def test_a_recipe_without_settings_is_published_as_it_was_written(tmp_path: Path) -> None:
    text = f"# a comment\n{RECIPE}"
    assert effective.text(recipe_file.load(workspace(tmp_path, text))) == text


@pytest.mark.parametrize("given_", [[one] for one in SETTINGS[:1] + SETTINGS[4:]] + [list(SETTINGS)])
def test_the_published_recipe_builds_what_the_settings_made(tmp_path: Path, given_: list[str]) -> None:
    path = workspace(tmp_path / "ws")
    first = recipe_file.load(path, given_)
    published = effective.text(first)
    assert published != RECIPE
    path.write_text(published)
    again = recipe_file.load(path)
    assert again.recipe == first.recipe
    plans = [plan.make(one, Store(tmp_path / "home"), thorough=True) for one in (first, again)]
    assert [step.key for step in plans[0].steps.values()] == [step.key for step in plans[1].steps.values()]


def test_what_was_set_is_named_at_the_top_and_marked_at_its_line(tmp_path: Path) -> None:
    loaded = recipe_file.load(workspace(tmp_path), ["calibration.samples=5", "evaluate.tasks.0.samples=7"])
    lines = effective.text(loaded).splitlines()
    assert [line for line in lines if line.startswith("#   ")] == [
        "#   --set calibration.samples=5",
        "#   --set evaluate.tasks.0.samples=7",
    ]
    assert [line.strip() for line in lines if line.endswith(effective.MARK)] == [
        f"samples: 5{effective.MARK}",
        f"samples: 7{effective.MARK}",
    ]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]), max_size=60))
def test_any_value_that_a_recipe_takes_is_published_as_it_is(tmp_path: Path, value: str) -> None:
    path = tmp_path / "tiny.yaml"
    if not path.exists():
        workspace(tmp_path / "ws")
        path.write_text(RECIPE)
    loaded = recipe_file.load(path, [f"model.license={json.dumps(value, ensure_ascii=False)}"])
    read = yamlfile.parse(path, effective.text(loaded))
    assert read is not None
    data: dict[str, Any] = read.data
    assert data["model"]["license"] == value
    assert data == {**yaml.safe_load(RECIPE), "model": {"source": "model", "license": value}}
