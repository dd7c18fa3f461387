"""Recipes: whatever is in the file, and behind `--set`, there is a plan or every problem with its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.core.errors import QpackError
from qpack.core.store import Store
from qpack.pipeline import estimate, requirements
from qpack.pipeline import plan as plans
from qpack.recipe.recipe_file import load
from tests.fuzz import strategies_recipe as near
from tests.fuzz.law import fuzz, refused_or_read
from tests.unit.recipes import workspace


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything that the recipes name, which is where they are read."""
    folder = tmp_path_factory.mktemp("recipes")
    workspace(folder / "work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(folder / "hf"))
        patch.chdir(folder)
        yield folder / "work"


def planned(path: Path, settings: list[str], store: Store) -> None:
    """What `check` and `plan` do before they print."""
    found = plans.make(load(path, settings), store, thorough=False)
    requirements.required(found, 2**40)
    estimate.steps(found, store)
    for problem in found.advice:
        str(problem).encode()


@fuzz
@given(content=near.recipes(), settings=st.lists(near.settings(), max_size=2))
def test_a_recipe_is_planned_or_refused_with_places(content: bytes, settings: list[str], beside: Path) -> None:
    path = beside / "fuzzed.yaml"
    path.write_bytes(content)

    def plan() -> None:
        try:
            planned(path, settings, Store(beside.parent / "home"))
        except QpackError as error:
            # Everything that is said of it can be written to a terminal, and is short enough to be read there.
            for problem in error.problems:
                assert str(problem.where), problem
                assert len(str(problem)) < 5000, str(problem)[:200]
            raise

    refused_or_read(plan, where="fuzzed.yaml" if not settings else "")


@fuzz
@given(content=near.recipes())
def test_a_recipe_file_is_read_or_refused_at_a_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    refused_or_read(lambda: load(path), where=path.name)
