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
    assert {gate: where.line for gate, where in bounds.where.items()} == {"accuracy_drop": 3, "failed_requests": 4}


@pytest.mark.parametrize(
    ("text", "code", "line", "key"),
    [
        ("gates:\n  acuracy_drop: 0.02\n", "no-such-key", 2, ("gates", "acuracy_drop")),
        ("gates:\n  accuracy_drop: yes\n", "invalid-value", 2, ("gates", "accuracy_drop")),
        ("accuracy_drop: 0.02\n", "no-such-key", 1, ("accuracy_drop",)),
        ("gates: {}\n", "no-gate", 1, ("gates",)),
        ("- 1\n", "no-mapping", 1, ()),
        ("gates:\n  flip_rate: 0.1\n  flip_rate: 0.2\n", "duplicate-key", 3, ("gates", "flip_rate")),
        ("gates: [\n", "not-yaml", 2, ()),
        ("", "empty-file", 1, ()),
    ],
)
def test_what_is_wrong_in_a_policy_is_told_with_its_line(
    text: str, code: str, line: int, key: tuple[str, ...], tmp_path: Path
):
    with pytest.raises(RecipeError) as caught:
        gate_policy.load(write(tmp_path, text))
    found = [(problem.code.name, problem.where.line, problem.where.key) for problem in caught.value.problems]
    assert (code, line, key) in found
    assert "nothing was judged" in caught.value.what


def test_a_policy_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(RecipeError) as caught:
        gate_policy.load(tmp_path / "none.yaml")
    assert [(p.code.name, p.where.file) for p in caught.value.problems] == [
        ("no-such-file", str(tmp_path / "none.yaml"))
    ]
