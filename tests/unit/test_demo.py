"""Which demo a machine gets, and that each is a recipe that can be planned."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy import stats

from qpack.core.records import Hardware
from qpack.recipe import demo
from qpack.recipe.recipe_file import load

CPU = Hardware(target="cpu", name="a CPU", cores=2, memory_bytes=2**33)
GPU = CPU.model_copy(update={"target": "hopper", "name": "a GPU", "accelerators": 1})


@pytest.mark.parametrize(
    ("machine", "avx512", "scheme", "engine"),
    [(CPU, True, "W4A16_ASYM", "gram"), (CPU, False, "W8A8", "auto"), (GPU, False, "W4A16_ASYM", "gram")],
)
@pytest.mark.parametrize("quick", [False, True])
def test_a_machine_gets_what_its_server_can_load(
    machine: Hardware, avx512: bool, scheme: str, engine: str, quick: bool
) -> None:
    chosen = demo.choose(machine, avx512=avx512, quick=quick)
    recipe = load(chosen.recipe, list(chosen.settings)).recipe
    assert (recipe.quantize.scheme, recipe.quantize.engine) == (scheme, engine)
    assert recipe.gates.bounds(), "the demo shows gates"


def test_the_quick_demo_measures_less_of_everything_and_leaves_no_part_out() -> None:
    whole, quick = (
        load(chosen.recipe, list(chosen.settings)).recipe
        for chosen in (demo.choose(CPU, avx512=True, quick=quick) for quick in (False, True))
    )
    assert (
        0
        < sum(task.samples or 0 for task in quick.evaluate.tasks)
        < sum(task.samples or 0 for task in whole.evaluate.tasks)
    )
    assert 0 < quick.evaluate.perplexity.windows < whole.evaluate.perplexity.windows
    assert 0 < len(quick.measure.concurrency) < len(whole.measure.concurrency)
    assert set(quick.gates.bounds()) == set(whole.gates.bounds())


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("avx512", [False, True])
def test_the_demo_asks_enough_items_to_show_that_its_model_is_not_guessing(quick: bool, avx512: bool) -> None:
    """Otherwise accuracy is undecided. SmolLM2-135M-Instruct answers 0.644 of PIQA (docs/benchmarks/gram.md)."""
    chosen = demo.choose(CPU, avx512=avx512, quick=quick)
    tasks = load(chosen.recipe, list(chosen.settings)).recipe.evaluate.tasks
    (items,) = (task.samples or 0 for task in tasks if task.task == "qpack_piqa")
    # The exact test of evals.gates.sanity at 5 %, Holm-adjusted over the tasks.
    fewest = next(right for right in range(items) if stats.binom.sf(right - 1, items, 0.5) <= 0.05 / len(tasks))
    assert stats.binom.sf(fewest - 1, items, 0.644) > 0.95


def test_the_recipes_of_a_wheel_come_before_those_of_a_clone(tmp_path: Path) -> None:
    wheel, clone = tmp_path / "wheel", tmp_path / "clone"
    for folder in (wheel, clone):
        folder.mkdir()
        (folder / "a.yaml").touch()
    assert demo.shipped("a.yaml", [wheel, clone]).parent == wheel
    (wheel / "a.yaml").unlink()
    assert demo.shipped("a.yaml", [wheel, clone]).parent == clone
