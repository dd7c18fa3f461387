"""Claims about where a missed gate is located: at its bound, in the recipe or in what `--set` gave."""

from __future__ import annotations

import pytest

from evals.gates.missed import missed
from qpack.core.problems import Location
from tests.unit.registry_examples import release


@pytest.mark.parametrize(
    ("bound", "gate", "place"),
    [
        (Location("recipe.yaml", 31, key=("gates", "flip_rate")), "flip_rate", "recipe.yaml:31: flip_rate"),
        (Location(option="--set", key=("gates", "flip_rate")), "flip_rate", "--set gates.flip_rate"),
        (
            Location(option="--set", key=("gates", "task_accuracy_drop")),
            "task_accuracy_drop[piqa]",
            "--set gates.task_accuracy_drop: task_accuracy_drop[piqa]",
        ),
        (Location(), "flip_rate", "flip_rate"),
    ],
)
def test_a_missed_gate_is_at_its_bound(bound: Location, gate: str, place: str) -> None:
    passed = release().verdict
    failed = passed.gates[0].model_copy(update={"gate": gate, "outcome": "fail"})
    verdict = passed.model_copy(update={"outcome": "fail", "gates": (failed,)})
    assert [str(problem.where) for problem in missed(verdict, lambda _: bound)] == [place]
