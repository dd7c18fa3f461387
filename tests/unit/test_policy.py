"""Claims about policy files: gates apart from a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from qpack.core.errors import RecipeError
from qpack.recipe import gate_policy


def write(folder: Path, text: str) -> Path:
    path = folder / "policy.yaml"
    path.write_text(text)
    return path


def test_a_policy_gives_its_bounds_and_their_lines(tmp_path: Path):
    path = write(tmp_path, "# ours\ngates:\n  accuracy_drop: 0.02\n  failed_requests: 0\n")
    bounds = gate_policy.load(path)
    assert bounds.values == {"accuracy_drop": 0.02, "failed_requests": 0.0}
    assert bounds.where == {"accuracy_drop": f"{path}:3", "failed_requests": f"{path}:4"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gates:\n  acuracy_drop: 0.02\n", ":2: gates.acuracy_drop: unknown key. Did you mean 'accuracy_drop'?"),
        ("gates:\n  accuracy_drop: yes\n", ":2: gates.accuracy_drop: 'yes' should be a valid number"),
        ("accuracy_drop: 0.02\n", ":1: accuracy_drop: unknown key. A policy has one key: gates."),
        ("gates: {}\n", ":1: gates: no gate is set"),
        ("- 1\n", ":1: a policy is a mapping"),
        ("gates:\n  flip_rate: 0.1\n  flip_rate: 0.2\n", ":3: gates.flip_rate: duplicate key"),
        ("gates: [\n", "not YAML"),
        ("", ":1: the file is empty"),
    ],
)
def test_what_is_wrong_in_a_policy_is_told_with_its_line(text: str, told: str, tmp_path: Path):
    with pytest.raises(RecipeError) as caught:
        gate_policy.load(write(tmp_path, text))
    assert told in "\n".join(map(str, caught.value.problems))
    assert "nothing was judged" in caught.value.what


def test_a_policy_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(RecipeError) as caught:
        gate_policy.load(tmp_path / "none.yaml")
    assert "no such policy" in str(caught.value.problems[0])
