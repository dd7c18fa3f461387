"""Every recipe that ships can be built by benchmarks/shipped_recipes.py, the real model or not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from qpack.recipe.recipe_file import load
from quantize.checkpoint import from_config

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import random_weights  # noqa: E402
import shipped_recipes  # noqa: E402

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def source_of(path: Path) -> str:
    uri: str = yaml.safe_load(path.read_text())["model"]["source"]
    return uri


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("tiny", [False, True])
def test_each_recipe_has_a_stand_in_whose_settings_are_a_recipe(path: Path, tiny: bool) -> None:
    recipe = yaml.safe_load(path.read_text())
    shape = shipped_recipes.shape_of(recipe["model"]["source"], tiny=tiny)
    stands_in = shape is not None or source_of(path) in shipped_recipes.PACKED
    assert stands_in == source_of(path).startswith("hf://")
    options = argparse.Namespace(tiny=tiny, set=[])
    model = Path("random") if stands_in else None
    loaded = load(path, shipped_recipes.settings(recipe, model, options))
    assert loaded.recipe.name == path.stem


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if source_of(path) in shipped_recipes.SHAPES], ids=lambda path: path.stem
)
@pytest.mark.parametrize("tiny", [False, True])
def test_its_random_weights_are_the_layers_of_its_config(path: Path, tiny: bool) -> None:
    shape: dict[str, Any] = shipped_recipes.shape_of(yaml.safe_load(path.read_text())["model"]["source"], tiny=tiny)
    written = {name: shape for name, shape in random_weights.shapes(shape) if len(shape) == 2}
    assert written == {f"{name}.weight": shape for name, shape in (from_config.shapes(shape) or {}).items()}
